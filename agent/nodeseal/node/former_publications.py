"""What agents of this run directory published before under another name or in another source: nothing of it is here any
more, so it is withdrawn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from nodeseal.local import run_directory
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.sources.source import PublicationError, Reference, Source, SourceAwayError

log = logging.getLogger("nodeseal.agent")


class FormerPublications:
    """Those that are noted in the run directory; the note is read until all of them are withdrawn."""

    def __init__(self, run_dir: Path, source: Source, source_at: Callable[[Reference, Path], Source]) -> None:
        """`source`: the present one; `source_at` finds a former one by its reference and this run directory, and raises
        ValueError when there is none."""
        self._run_dir = run_dir
        self._present = source.reference()
        self._source_at = source_at
        self._withdrawn = False
        self._failures: list[str] = []

    def remember_present(self) -> None:
        """Notes the present source, so that an agent that has another one withdraws what is published there. Raises
        OSError."""
        run_directory.remember_publication(self._run_dir, self._present)

    async def withdraw(self) -> None:
        """Withdraws them. To be called again and again: it does nothing once they are withdrawn."""
        if self._withdrawn:
            return
        failures: list[str] = []
        try:
            noted = await asyncio.to_thread(run_directory.remembered_publications, self._run_dir)
            left = [await self._withdraw(one, failures) for one in noted if one != self._present]
        except (OSError, ValueError) as error:
            failures.append(str(error))
            left = [True]
        self._withdrawn = not any(left)
        self._failures = failures

    async def _withdraw(self, reference: Reference, failures: list[str]) -> bool:
        """Whether it is left to be tried again."""
        try:
            source = self._source_at(reference, self._run_dir)
            if await source.withdraw() is not None:
                where = source.describe()
                log.warning("withdrew the publication of %s in %s, as which this node ran before", source.node, where)
            await asyncio.to_thread(run_directory.forget_publication, self._run_dir, reference)
        except SourceAwayError:
            return True  # it may come back with its file system
        except (OSError, ValueError, PublicationError) as error:
            node = reference.get("node", "?")
            failures.append(f"the former publication of the node {node} was not withdrawn: {error}")
            return True
        return False

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        for text in self._failures:
            yield Problem(ProblemWord.FORMER_PUBLICATION, text, "remove it by hand if its node is no more")
