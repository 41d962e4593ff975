"""The CA's remaining life, and who else can get at its keys and at the run directory.

What is wrong is listed by `nodeseal status`, and stands in the log once a day.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from nodeseal.identity.credentials import Credentials, utc_now
from nodeseal.local import run_directory
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.node.problems import Problem

log = logging.getLogger("nodeseal.agent")

LOG_AGAIN = timedelta(days=1)


class CaWatch:
    """What the last look found. `now`: the wall clock."""

    def __init__(self, credentials: Credentials, run_dir: Path, now: Callable[[], datetime] = utc_now) -> None:
        self._credentials = credentials
        self._run_dir = run_dir
        self._now = now
        self._found: tuple[Problem, ...] = ()
        self._logged: datetime | None = None

    def problems(self) -> tuple[Problem, ...]:
        """See nodeseal.node.problems."""
        return self._found

    def look(self) -> None:
        """Looks anew, and takes on a CA directory that has changed. May wait for the disk: not for the event loop."""
        found = tuple(self._problems())
        known = {problem.word for problem in self._found}
        # A clock that was set back by years must not silence it for years.
        due = self._logged is None or abs(self._now() - self._logged) >= LOG_AGAIN
        for problem in found:
            if due or problem.word not in known:
                log.warning("%s: %s", problem.text, problem.remedy)
        if due and found:
            self._logged = self._now()
        self._found = found

    def _problems(self) -> Iterator[Problem]:
        condition = self._credentials.condition()
        for one in condition.endings:
            yield Problem(ProblemWord.CA_EXPIRED if one.over else ProblemWord.CA_EXPIRES, one.text, one.remedy)
        if condition.unused is not None:
            text = f"the changed CA directory is not used: {condition.unused}"
            yield Problem(ProblemWord.CA_NOT_USED, text, "the agent goes on with what it read before")
        for text in condition.exposed:
            yield Problem(ProblemWord.CA_EXPOSED, text, "chown root and chmod it: 600 for keys, 700 for the directory")
        if (why := run_directory.visible(self._run_dir)) is not None:
            text = f"others can look into the run directory {self._run_dir}: {why}"
            yield Problem(ProblemWord.RUN_DIRECTORY_EXPOSED, text, "chmod 700 it")
