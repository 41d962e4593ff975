"""Named network namespaces, as `ip netns` keeps them under /run/netns: make, remove, list, enter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nodeseal.linux.errors import LinuxError
from nodeseal.linux.namespace import NetworkNamespace, set_network_namespace
from nodeseal_lab.errors import LabError

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")


def list_namespaces(beginning: str = "") -> list[str]:
    """The names of the namespaces that begin with `beginning`, sorted."""
    if not NETNS_DIR.is_dir():
        return []
    return sorted(entry.name for entry in NETNS_DIR.iterdir() if entry.name.startswith(beginning))


def create_namespace(name: str) -> None:
    """Raises LabError when it exists or cannot be made."""
    from pyroute2 import netns

    try:
        netns.create(name)
    except OSError as error:
        raise LabError(f"cannot make the network namespace {name}: {error.strerror or error}") from error


def remove_namespace(name: str) -> None:
    """Removes the name; the namespace itself goes with its last process. One that is gone, or half made, is fine."""
    from pyroute2 import netns

    try:
        netns.remove(name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LabError(f"cannot remove the network namespace {name}: {error.strerror or error}") from error


def run_in(name: str, function: Callable[[], T]) -> T:
    """Runs `function` in a thread that has entered the namespace `name`: sockets and processes that it makes live
    there, and so do the files under /proc/sys/net. Raises LabError when the namespace is gone, else what the function
    raises."""
    try:
        namespace = NetworkNamespace.open(name)
    except LinuxError as error:
        raise LabError(str(error)) from error
    with namespace:
        return namespace.run(function)


def enter(name: str) -> None:
    """Moves the calling thread into the namespace, for good. Raises LabError."""
    try:
        with NetworkNamespace.open(name) as namespace:
            set_network_namespace(namespace.fd)
    except (LinuxError, OSError) as error:
        raise LabError(f"cannot enter the network namespace {name}: {error}") from error


def write_sysctls(name: str, values: dict[str, str]) -> None:
    """Sets sysctls of a namespace, {"ipv4/ip_forward": "1"}. Raises LabError that names the one that failed."""

    def write() -> None:
        for key, value in values.items():
            try:
                Path("/proc/sys/net", key).write_text(value)
            except OSError as error:
                raise LabError(f"cannot set the sysctl net/{key} in {name}: {error.strerror}") from error

    run_in(name, write)
