"""The ledger's one thread: what comes while it commits is committed together next, so that a flood of certificates
costs few syncs of the disk."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.ledger import Entry, Ledger
from nodeseal.authority.refused import Refused

T = TypeVar("T")

_TOGETHER = 1_000
"""Most entries of one transaction."""


class Recorder:
    """Opened by `open`. All methods belong to the event loop."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        """`now`: the wall clock."""
        self._now = now
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._ledger: Ledger | None = None
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._committing: asyncio.Task[None] | None = None

    async def open(self, state: Path) -> None:
        """Raises AuthorityError."""
        self._ledger = await self._run(lambda: Ledger(state))

    async def close(self) -> None:
        """What waits is recorded first."""
        while self._committing is not None:
            await asyncio.wait([self._committing])
        if (ledger := self._ledger) is not None:
            self._ledger = None
            await self._run(ledger.close)
        self._thread.shutdown(wait=False)

    async def ask(self, question: Callable[[Ledger], T]) -> T:
        """What the ledger answers. Raises AuthorityError."""
        ledger = self._opened()
        return await self._run(lambda: question(ledger))

    async def record(self, entry: Entry) -> None:
        """Returns when it is on the disk. Raises Refused when it must not be, and AuthorityError."""
        self._opened()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, done))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())
        await done

    async def _commit(self) -> None:
        ledger = self._opened()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
                entries = [entry for entry, _done in batch]
                now = self._now()
                outcome: list[Refused | None] | AuthorityError
                try:
                    outcome = await self._run(functools.partial(ledger.record, entries, now))
                except AuthorityError as error:
                    outcome = error
                for number, (_entry, done) in enumerate(batch):
                    why = outcome if isinstance(outcome, AuthorityError) else outcome[number]
                    if done.done():  # whoever asked has gone
                        continue
                    if why is None:
                        done.set_result(None)
                    else:
                        done.set_exception(why)
        finally:
            self._committing = None

    def _opened(self) -> Ledger:
        if self._ledger is None:
            raise AuthorityError("the certificate service's database is not open")
        return self._ledger

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)
