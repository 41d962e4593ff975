"""A network namespace: found, identified, and entered by a thread of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from nodeseal.linux.errors import LinuxError
from nodeseal.linux.libc import LIBC, checked
from nodeseal.linux.socket_options import SO_NETNS_COOKIE

T = TypeVar("T")

NAMED = Path("/run/netns")  # where `ip netns add` and CNI plugins put namespaces
_CLONE_NEWNET = 0x40000000


class NamespaceGoneError(LinuxError):
    """The network namespace does not exist (any more)."""


class NetworkNamespace:
    """An open network namespace. `fd` keeps it alive until close().

    `cookie` is the kernel's number for it, unique until reboot (SO_NETNS_COOKIE): the key of the BPF map. `inode` is
    the number that /proc/PID/ns/net shows, which may be used again after the namespace is gone.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self.cookie: int = self.run(network_namespace_cookie)

    @classmethod
    def open(cls, name: str) -> NetworkNamespace:
        """Open by name (under /run/netns) or by path. Raises NamespaceGoneError, or LinuxError without privileges."""
        path = Path(name) if "/" in name else NAMED / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NamespaceGoneError(
                f"network namespace not found: {path} does not exist; is the workload running on this node?"
            ) from None
        except OSError as error:
            raise LinuxError(f"cannot open the network namespace {path}: {error.strerror}; run as root") from None
        try:
            return cls(path, fd)
        except PermissionError:
            os.close(fd)
            raise LinuxError(
                f"cannot enter the network namespace {path}: permission denied; run as root, or with CAP_SYS_ADMIN"
            ) from None
        except OSError:
            os.close(fd)
            raise NamespaceGoneError(
                f"network namespace not found: {path} is there but is no network namespace; "
                "was the namespace deleted while something kept its file?"
            ) from None

    @classmethod
    def find(cls, path: str, cookie: int) -> NetworkNamespace:
        """The very namespace with this cookie: at its path, or, when the path is gone or means another one by now,
        through a process that lives in it, or a name that it has. Raises NamespaceGoneError.
        """
        # "/proc/self/ns/net" means the node's own to its agent, but not to everybody who cleans up.
        elsewhere = [*Path("/proc").glob("[0-9]*/ns/net"), *NAMED.glob("*")]
        candidates = [path, *map(str, elsewhere)]
        seen: set[int] = set()
        for candidate in candidates:
            with contextlib.suppress(OSError, LinuxError):
                inode = Path(candidate).stat().st_ino if "/" in candidate else (NAMED / candidate).stat().st_ino
                if inode in seen:
                    continue
                seen.add(inode)
                namespace = cls.open(candidate)
                if namespace.cookie == cookie:
                    return namespace
                namespace.close()
        raise NamespaceGoneError(
            f"network namespace gone: {path} (cookie {cookie}) and neither a process nor a name is left of it"
        )

    def run(self, action: Callable[[], T]) -> T:
        """Call `action` in a new thread inside the namespace. Its result or exception comes back.

        A thread, because setns() moves one thread only and the caller's must stay where it is. /proc/sys/net, sockets
        and netlink in that thread belong to the namespace.
        """

        def body() -> T:
            set_network_namespace(self.fd)
            return action()

        return _in_thread(body, "nodeseal-netns")

    def close(self) -> None:
        """Let go of the namespace; harmless when done twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> NetworkNamespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def set_network_namespace(fd: int) -> None:
    """Move the calling thread, and only it, into a network namespace. Raises OSError."""
    checked(LIBC.setns(fd, _CLONE_NEWNET))


def network_namespace_cookie() -> int:
    """The kernel's number of the calling thread's network namespace: unique until reboot, never used again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        cookie: int = struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
        return cookie


def in_new_namespace(action: Callable[[], T]) -> T:
    """Call `action` in a network namespace made for it, gone afterwards. Its result or exception comes back."""

    def body() -> T:
        checked(LIBC.unshare(_CLONE_NEWNET))
        return action()

    # A thread that ends at once, and the namespace with it: the caller's must stay where it is.
    return _in_thread(body, "nodeseal-probe")


def _in_thread(action: Callable[[], T], name: str) -> T:
    """Call `action` in a thread of its own. Its result or exception comes back."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    thread.join()
    if errors:
        # The list would keep the traceback, and with it this frame, alive in a cycle.
        error = errors.pop()
        raise error
    return results[0]
