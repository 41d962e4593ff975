"""The connect programs at the cgroup of a workload that is a process of the node (bpf/mark_host.c).

A service that starts again has its cgroup made anew, and may dial at once: the programs of the links that are pinned,
which the kernel keeps although the cgroup is gone, are attached to the new one without being loaded.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from nodeseal.capture.bpf.pins import opened, put_link
from nodeseal.capture.errors import CaptureError, CgroupGoneError
from nodeseal.linux import bpf

_LINKS = {
    "connect4": ("mark_host4", bpf.ATTACH_CGROUP_INET4_CONNECT),
    "connect6": ("mark_host6", bpf.ATTACH_CGROUP_INET6_CONNECT),
}
"""Name of the pin -> function, attach type."""

Load = Callable[[contextlib.ExitStack, str], int]
"""Loads the function of this name for the workload; what lets go of it goes to the stack."""


def attach(name: str, path: Path, pins: Path, load: Load, *, replace: bool = False) -> None:
    """Attach the programs of the workload `name` to its cgroup, unless they are there; `replace`: in any case.

    `path`: the cgroup's directory; `pins`: where the links are pinned. Raises CgroupGoneError, CaptureError.
    """
    with contextlib.ExitStack() as stack:
        cgroup = stack.enter_context(_directory(name, path))
        try:
            # The number of a cgroup is the inode of its directory.
            number = os.fstat(cgroup).st_ino
            for pin, (function, attach_type) in _LINKS.items():
                attached = _attached_cgroup(pins / pin)
                if attached == number and not replace:
                    continue
                if attached is not None and not replace:
                    program = stack.enter_context(_program_of(pins / pin))
                else:
                    program = load(stack, function)
                if attached not in (number, None):
                    (pins / pin).unlink(missing_ok=True)
                create = partial(bpf.link_create, program, cgroup, attach_type)
                put_link(pins / pin, program, create, replace=replace)
        except OSError as error:
            if error.errno == errno.ENODEV:  # removed since it was opened
                raise CgroupGoneError(f"cgroup not found: {path} of {name} was removed just now") from None
            raise CaptureError(
                f"cannot attach to the cgroup {path}: {error.strerror}; another program there may be exclusive"
            ) from None


@contextlib.contextmanager
def _directory(name: str, path: Path) -> Iterator[int]:
    try:
        cgroup = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise CgroupGoneError(
            f"cgroup not found: {path} of {name} does not exist; does the service run on this node?"
        ) from None
    try:
        yield cgroup
    finally:
        os.close(cgroup)


@contextlib.contextmanager
def _program_of(pin: Path) -> Iterator[int]:
    """The program of a pinned link, which keeps it although its cgroup is gone."""
    with opened(pin) as link:
        program = bpf.program_by_identifier(bpf.link_program(link))
    try:
        yield program
    finally:
        os.close(program)


def _attached_cgroup(pin: Path) -> int | None:
    """The number of the cgroup that a pinned link is attached to; 0: it was removed; None: there is no link."""
    try:
        with opened(pin) as link:
            return bpf.link_cgroup(link)
    except FileNotFoundError:
        return None
