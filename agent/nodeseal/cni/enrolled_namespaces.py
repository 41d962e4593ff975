"""The namespaces whose pods are to be enrolled, in a file for the network plugin: while no agent answers, it tells the
plugin which pods have to wait for one. It is kept as the source of the mesh state knows them; the file of an agent
before counts until this one knows more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from nodeseal.linux.atomic_file import replace_file
from nodeseal.local import run_directory

log = logging.getLogger("nodeseal.agent")

LOOK_S = 1.0


class EnrolledNamespaces:
    """Belongs to the event loop."""

    def __init__(self, run_dir: Path, known: Callable[[], frozenset[str] | None]) -> None:
        """`known`: see Source.enrolled_namespaces."""
        self._path = run_dir / run_directory.ENROLLED_NAMESPACES
        self._known = known
        self._written: frozenset[str] | None = None
        self._failure: str | None = None

    def lack(self, namespace: str) -> bool:
        """Whether it is known that its pods are not to be enrolled. (cext/cni/namespaces.c asks the same.)"""
        known = self._known()
        if known is None:
            known = self._written if self._written is not None else self._read()
        return known is not None and namespace not in known

    async def run(self) -> None:
        """Never ends by itself."""
        while True:
            self.keep()
            await asyncio.sleep(LOOK_S)

    def keep(self) -> None:
        """Writes what is known, if it is not in the file."""
        known = self._known()
        if known is None or known == self._written:
            return
        try:
            replace_file(self._path, "".join(f"{name}\n" for name in sorted(known)).encode(), 0o600)
        except OSError as error:
            if self._failure is None:
                log.warning("%s cannot be written: %s", self._path, error.strerror or error)
            self._failure = str(error)
            return
        self._written, self._failure = known, None

    def _read(self) -> frozenset[str] | None:
        try:
            return frozenset(self._path.read_text(encoding="ascii").split())
        except (OSError, ValueError):
            return None
