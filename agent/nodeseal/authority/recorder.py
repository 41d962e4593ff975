"""The ledger's one thread: what comes while it commits is committed together next, so that a flood of certificates
costs few syncs of the disk."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.ledger import Entry, Ledger
from nodeseal.authority.refused import Refused

log = logging.getLogger("nodeseal.ca")

T = TypeVar("T")

_TOGETHER = 1_000
"""Most entries of one transaction."""

_Waiting = tuple[Entry, Callable[[], None], asyncio.Future[None]]


class Recorder:
    """Opened by `open`. All methods belong to the event loop."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        """`now`: the wall clock."""
        self._now = now
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._ledger: Ledger | None = None
        self._waiting: list[_Waiting] = []
        self._committing: asyncio.Task[None] | None = None
        self._failed = False
        """What was to be recorded last could not be."""

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

    async def check(self) -> None:
        """If recording has failed: tries whether the disk can be written by now. Raises AuthorityError while it
        cannot, though it may be readable."""
        if self._failed:
            await self.ask(Ledger.try_writing)
            self._failed = False

    async def record(self, entry: Entry, recorded: Callable[[], None]) -> None:
        """Returns when it is on the disk. `recorded` is called then, also if whoever asked has gone meanwhile. Raises
        Refused when it must not be, and AuthorityError."""
        self._opened()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, recorded, done))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())
        await done

    async def _commit(self) -> None:
        ledger = self._opened()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
                entries = [entry for entry, _recorded, _done in batch]
                outcomes: Sequence[Refused | AuthorityError | None]
                try:
                    outcomes = await self._run(functools.partial(ledger.record, entries, self._now()))
                    self._failed = False
                except AuthorityError as error:
                    self._failed = True
                    outcomes = [AuthorityError(str(error)) for _ in batch]
                except Exception:  # whatever it is, nobody waits for ever
                    log.exception("cannot record certificates")
                    self._failed = True
                    outcomes = [AuthorityError("what was issued cannot be recorded; the service's log says why")]
                    outcomes *= len(batch)
                for (_entry, recorded, done), why in zip(batch, outcomes, strict=True):
                    if why is None:
                        try:
                            recorded()
                        except Exception:  # the others of its batch wait too
                            log.exception("cannot tell of a certificate that is recorded")
                            why = AuthorityError("what was issued cannot be told of; the service's log says why")
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
