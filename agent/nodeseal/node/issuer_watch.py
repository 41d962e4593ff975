"""How the issuer is (the CA's remaining life, who else can get at its keys), and who can get at the run directory.

What is wrong is listed by `nodeseal status`, and stands in the log once a day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from nodeseal.clock import utc_now
from nodeseal.identity.issuer import Flaw, Issuer
from nodeseal.local import run_directory
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord

log = logging.getLogger("nodeseal.agent")

LOG_AGAIN = timedelta(days=1)

_CHECK_S = 5.0
_WORDS = {
    Flaw.EXPIRED: ProblemWord.CA_EXPIRED,
    Flaw.EXPIRES: ProblemWord.CA_EXPIRES,
    Flaw.STALE: ProblemWord.CA_NOT_USED,
    Flaw.EXPOSED: ProblemWord.CA_EXPOSED,
    Flaw.ON_DISK: ProblemWord.KEYS_ON_DISK,
    Flaw.AWAY: ProblemWord.CA_AWAY,
    Flaw.UNPROVEN: ProblemWord.NODE_UNPROVEN,
}


class IssuerWatch:
    """What the last look found. `now`: the wall clock."""

    def __init__(self, issuer: Issuer, run_dir: Path, now: Callable[[], datetime] = utc_now) -> None:
        self._issuer = issuer
        self._run_dir = run_dir
        self._now = now
        self._found: tuple[Problem, ...] = ()
        self._logged: datetime | None = None

    def problems(self) -> tuple[Problem, ...]:
        """See nodeseal.node.problems."""
        return self._found

    async def run(self) -> None:
        """Looks again and again. Never ends."""
        while True:
            try:
                await self.look()
            except OSError as error:
                log.warning("cannot look at the run directory: %s", error)
            await asyncio.sleep(_CHECK_S)

    async def look(self) -> None:
        """Looks anew, as long as the issuer takes to answer. Raises OSError when the run directory cannot be seen."""
        faults = await self._issuer.condition()
        found = (
            *(Problem(_WORDS[one.flaw], one.text, one.remedy) for one in faults),
            *await asyncio.to_thread(lambda: tuple(self._of_run_directory())),
        )
        known = {problem.word for problem in self._found}
        # A clock that was set back by years must not silence it for years.
        due = self._logged is None or abs(self._now() - self._logged) >= LOG_AGAIN
        for problem in found:
            if due or problem.word not in known:
                log.warning("%s: %s", problem.text, problem.remedy)
        if due and found:
            self._logged = self._now()
        self._found = found

    def _of_run_directory(self) -> Iterator[Problem]:
        if (why := run_directory.visible(self._run_dir)) is not None:
            text = f"others can look into the run directory {self._run_dir}: {why}"
            yield Problem(ProblemWord.RUN_DIRECTORY_EXPOSED, text, "chmod 700 it")
