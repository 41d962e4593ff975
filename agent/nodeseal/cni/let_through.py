"""Pods that started without being enrolled, because `on_failure` is open: told until they are enrolled, or gone.

Each has a note, a file named for its sandbox: the plugin leaves one when no agent answers, the agent when it lets a pod
through itself. So an agent that comes later knows of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nodeseal.contracts.pod_start import LetThrough, MessageError, Question, argument, read, written
from nodeseal.local import run_directory
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord

log = logging.getLogger("nodeseal.agent")

NOTES_MAX = 1000
LOOK_S = 10.0
_NOTE_MAX = 32 * 1024
_SHOWN = 5
_SANDBOX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


class LetThroughPods:
    """`is_enrolled` says whether something is captured in a network namespace, given its path."""

    def __init__(self, run_dir: Path, is_enrolled: Callable[[str], bool]) -> None:
        self._directory = run_dir / run_directory.LET_THROUGH
        self._is_enrolled = is_enrolled
        self._present: dict[str, LetThrough] = {}

    async def run(self) -> None:
        """Looks after the notes. Never ends by itself."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Takes in new notes, and forgets pods that are enrolled by now, or gone."""
        notes = await asyncio.to_thread(self._read)
        over = {}
        for name, note in notes.items():
            if name not in self._present:
                log.warning("pod %s has started without being enrolled before", _pod(note))
            if self._is_enrolled(note.netns):
                over[name] = "is enrolled now"
        for name, why in over.items():
            log.info("pod %s, which had started before, %s", _pod(notes.pop(name)), why)
            self.forget(name)
        self._present = notes

    def note(self, question: Question) -> None:
        """Notes one that the agent itself lets through; what fails is logged."""
        if not _SANDBOX.fullmatch(question.container_id):
            return
        note = LetThrough(question.container_id, question.netns, question.args, int(time.time()))
        self._present[note.container_id] = note
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            if len(list(self._directory.iterdir())) < NOTES_MAX:
                (self._directory / note.container_id).write_bytes(written(note))
        except OSError as error:
            log.warning("cannot note in %s that a pod was let through: %s", self._directory, error.strerror)

    def forget(self, sandbox: str) -> None:
        """It is gone, or enrolled."""
        self._present.pop(sandbox, None)
        if _SANDBOX.fullmatch(sandbox):
            with contextlib.suppress(OSError):
                (self._directory / sandbox).unlink()

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        if not self._present:
            return
        names = sorted(map(_pod, self._present.values()))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        text = f"pods started without being enrolled: {', '.join(names[:_SHOWN])}{more}"
        yield Problem(ProblemWord.POD_LET_THROUGH, text, "start them again once the agent is well")

    def _read(self) -> dict[str, LetThrough]:
        found = {}
        with contextlib.suppress(OSError):
            for path in sorted(self._directory.iterdir())[:NOTES_MAX]:
                with contextlib.suppress(OSError, MessageError), path.open("rb") as file:
                    note = read(file.read(_NOTE_MAX), LetThrough)
                    if Path(note.netns).exists():
                        found[path.name] = note
                        continue
                with contextlib.suppress(OSError):
                    path.unlink()
        return found


def _pod(note: LetThrough) -> str:
    name = f"{argument(note.args, 'K8S_POD_NAMESPACE')}/{argument(note.args, 'K8S_POD_NAME')}"
    return name if name != "/" else f"of the sandbox {note.container_id}"
