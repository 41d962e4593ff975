"""Memory and the garbage collector around the reading of a large mesh state.

A state of 50,000 workloads is a quarter of a million objects, none of them in a cycle. Every full collection looks at
each of them, and keeps the interpreter's lock for some 50 ms meanwhile, so they are not made with the collector
running, and are taken out of its sight (gc.freeze) once they are there; they are freed all the same when nothing
refers to them any more. What the reading itself needed, the allocator would keep for later: with malloc_trim(3) it
goes back to the system. Threads share one arena: what each needs for a moment stays in its own otherwise, and no two
of them are in the interpreter at once anyway.
"""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_LARGE = 1000
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_MMAP_THRESHOLD = 256 * 1024


class Heap:
    """Of a process that follows one mesh state. `objects`: how many of the state's are out of the collector's sight."""

    def __init__(self) -> None:
        self.objects = 0
        libc = ctypes.CDLL(None)
        # glibc only; other C libraries give back what they can by themselves.
        self._trim = getattr(libc, "malloc_trim", None)
        if (set_option := getattr(libc, "mallopt", None)) is not None:
            # By itself it grows with the first large file that is read, and nothing below it is given back at once.
            set_option(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
            set_option(_M_ARENA_MAX, 1)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around a reading: no collection meanwhile."""
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()

    def settle(self, objects: int) -> None:
        """After a reading that made something new, when all that it needed is freed, but within `reading`: the first
        collection after it would look at everything that is new. `objects`: how many the state has.

        Freezing also freezes garbage that waits to be collected; so it is done only when the state has grown.
        """
        if objects > _LARGE + self.objects * 5 // 4:
            self.objects = objects
            gc.freeze()
        if objects > _LARGE and self._trim is not None:
            self._trim(0)
