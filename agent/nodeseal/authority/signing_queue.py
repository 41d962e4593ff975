"""What waits to be signed, the most urgent first, and the threads that sign.

A workload without a certificate has waited since it asked; one that renews has until its present certificate ends. So
each has a time by which it should be served: a renewal the end of its certificate, all others FIRST_S from now. The
earliest goes first. A renewal near its end passes everybody, one with hours left lets the start of a fleet pass. Nobody
waits for ever: times do not move.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from nodeseal.authority.refused import Refused
from nodeseal.contracts.authority import ServiceWord

T = TypeVar("T")

FIRST_S = 600.0
_TOGETHER = 8
"""Most that a thread is given at once: handing over costs as much as a signature."""
_AGAIN_S = 2.0


class SigningQueue(Generic[T]):
    """All methods belong to the event loop. `run` is what the threads do, and must not need it."""

    def __init__(self, threads: int, most: int) -> None:
        """`most`: how many may wait."""
        self._most = most
        self._threads = threads
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="signer")
        self._heap: list[tuple[float, int, Callable[[], T], asyncio.Future[T]]] = []
        self._order = itertools.count()
        self._serving = 0
        """Tasks that will look at the heap again. Not how many tasks there are: one that has ended is told of later,
        and what came in between would wait for it."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._heap)

    async def sign(self, work: Callable[[], T], by: float) -> T:
        """What `work` returns or raises, in a thread. `by`: when it should be served, on any clock that is the same for
        all. Raises Refused when too many wait."""
        if len(self._heap) >= self._most:
            raise Refused(
                ServiceWord.BUSY, f"{len(self._heap):,} requests wait to be signed; they are refused for now", _AGAIN_S
            )
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (by, next(self._order), work, done))
        if self._serving < self._threads:
            self._serving += 1
            task = asyncio.create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await done

    async def close(self) -> None:
        """What waits is cancelled, what is being signed is finished."""
        for *_, done in self._heap:
            done.cancel()
        self._heap.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._pool.shutdown(wait=False)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._next():
                outcomes = await loop.run_in_executor(self._pool, _all, [work for work, _done in batch])
                for (_work, done), outcome in zip(batch, outcomes, strict=True):
                    if done.done():  # whoever asked has gone
                        continue
                    if isinstance(outcome, _Failed):
                        done.set_exception(outcome.error)
                    else:
                        done.set_result(outcome)
        finally:
            self._serving -= 1

    def _next(self) -> list[tuple[Callable[[], T], asyncio.Future[T]]]:
        found: list[tuple[Callable[[], T], asyncio.Future[T]]] = []
        # A little for each thread, rather than much for one.
        size = min(_TOGETHER, -(-len(self._heap) // self._threads))
        while self._heap and len(found) < size:
            _by, _order, work, done = heapq.heappop(self._heap)
            if not done.done():
                found.append((work, done))
        return found


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _all(works: list[Callable[[], T]]) -> list[T | _Failed]:
    return [_one(work) for work in works]


def _one(work: Callable[[], T]) -> T | _Failed:
    try:
        return work()
    except Exception as error:  # whatever it is, it is the asker's
        return _Failed(error)
    except BaseException as error:  # a panic in cryptography's Rust is no Exception
        return _Failed(RuntimeError(f"{type(error).__name__}: {error}"))
