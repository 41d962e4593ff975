"""Taking things away again: as much as can be, told one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from nodeseal.capture.errors import CaptureError
from nodeseal.linux.errors import LinuxError

Step = tuple[str, Callable[[], bool]]
"""What is removed, and how. The action returns False when there was nothing to do; it raises LinuxError or OSError."""


def carried_out(steps: Iterable[Step]) -> Iterator[str | CaptureError]:
    """Take every step, whatever becomes of the others: yields a line for each thing that was there and is removed, an
    error for what failed.
    """
    for what, action in steps:
        try:
            if action():
                yield what
        except CaptureError as error:
            yield error
        except LinuxError as error:
            yield CaptureError(f"cannot remove {what}: {error}")
        except OSError as error:
            yield CaptureError(f"cannot remove {what}: {error.strerror}")
