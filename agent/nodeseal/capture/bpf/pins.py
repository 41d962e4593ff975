"""Maps and links that are pinned in a BPF file system, where they outlive the agent."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from nodeseal.linux import bpf

STEER_PREFIX = "steer-"
HOLD_PREFIX = "hold-"
"""Of the links at a device's ingress and egress; its index follows."""
PARK = "park"
"""Of the link at lo's ingress."""
_LINKS = ("lookup", "connect4", "connect6", PARK)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of what is pinned there. Raises FileNotFoundError, OSError."""
    fd = bpf.pinned(path)
    try:
        yield fd
    finally:
        os.close(fd)


def pinned_or_new(path: Path, make: Callable[[], int], fits: Callable[[int], bool]) -> tuple[int, bool]:
    """(the map that is pinned at a path, or a new one, which takes the place of one that does not fit; whether it is
    new: then no program reads it yet). Raises OSError.
    """
    draft = path.with_name(path.name + "-new")
    with contextlib.suppress(FileNotFoundError):
        fd = bpf.pinned(path)
        if fits(fd):
            return fd, False
        os.close(fd)
    fd = make()
    try:
        draft.unlink(missing_ok=True)
        bpf.pin(fd, draft)
        draft.rename(path)
    except OSError:
        os.close(fd)
        raise
    return fd, True


def put_link(path: Path, program: int, create: Callable[[], int], *, replace: bool) -> None:
    """Make and pin a link, unless there is one; `replace`: then it attaches this program from now on. OSError."""
    try:
        with opened(path) as fd:
            if replace:
                bpf.link_update(fd, program)
    except FileNotFoundError:
        fd = create()
        try:
            bpf.pin(fd, path)
        finally:
            os.close(fd)


def remove_link(path: Path) -> bool:
    """Detach a link, from anywhere. False when nothing is pinned there. Raises OSError."""
    try:
        with opened(path) as fd:
            bpf.link_detach(fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.ENOLINK:  # ENOLINK: the device or namespace is gone, and the attachment with it
            raise
    path.unlink(missing_ok=True)
    return True


def remove_all(directory: Path) -> bool:
    """Detach the links and forget the maps that are pinned in a workload's directory; then the directory. False when it
    is not there. Raises OSError.
    """
    if not directory.is_dir():
        return False
    for path in sorted(directory.iterdir()):
        if path.name in _LINKS or path.name.startswith((STEER_PREFIX, HOLD_PREFIX)):
            remove_link(path)
        path.unlink(missing_ok=True)
    directory.rmdir()
    return True
