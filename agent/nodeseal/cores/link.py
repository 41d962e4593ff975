"""One core process as the agent holds it.

A core's end is seen on a pidfd (pidfd_open(2)), which works for a core that this agent started and for one that it
adopted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from nodeseal.contracts.core import PARKING_SINCE, SPOKEN, TRUST_APART_SINCE
from nodeseal.contracts.events import Told
from nodeseal.cores.client import CoreClient, CoreGone, Hello
from nodeseal.linux.pidfd import open_process
from nodeseal.local import generations

P = ParamSpec("P")
T = TypeVar("T")


class CoreLink:
    """A running core. `incarnation` is this agent's number for it, by which enrolments know whether it has them.

    `retired`: it takes no new connections; `since`: when it was retired, or when the agent came to know it (event loop
    time).
    """

    def __init__(
        self,
        run_dir: Path,
        hello: Hello,
        client: CoreClient,
        incarnation: int,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.pid = hello.pid
        self.generation = hello.generation
        self.version = hello.version
        self.build = hello.build
        self.retired = hello.retired
        self.protocol = hello.protocol
        self.spoken = hello.protocol in SPOKEN
        """It may be asked everything; others only what all versions have in common."""
        self.trust_apart = hello.protocol >= TRUST_APART_SINCE
        """It takes trust anchors apart from credentials."""
        self.reads_rings = hello.protocol >= PARKING_SINCE
        """It takes the rings of parked SYNs."""
        self.hello = hello
        self.incarnation = incarnation
        self.since = asyncio.get_running_loop().time()
        self.ended = asyncio.Event()
        self._run_dir = run_dir
        self._client = client
        self._process = process
        self._pidfd = -1

    def watch(self, on_end: Callable[[CoreLink], None]) -> None:
        """Calls `on_end`, once, when the process has ended; at once if it has already."""

        def noticed() -> None:
            self._unwatch()
            self.ended.set()
            on_end(self)

        try:
            self._pidfd = open_process(self.pid)
        except ProcessLookupError:
            noticed()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, noticed)

    async def call(
        self, method: Callable[Concatenate[CoreClient, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """CoreClient's method. Raises CoreError, CoreGone when the core has ended."""
        if self.ended.is_set():
            raise CoreGone(f"the core (pid {self.pid}) has ended")
        return await method(self._client, *args, **kwargs)

    def events(self) -> AsyncGenerator[Told, None]:
        """See CoreClient.events."""
        return self._client.events()

    def exit_text(self) -> str:
        """Such as " by signal 9"; empty when only another process, its parent, may know."""
        status = self._process.poll() if self._process is not None else None
        if status is None:
            return ""
        return f" by signal {-status}" if status < 0 else f" with exit status {status}"

    def forget_files(self) -> None:
        """Removes what a core that was killed could not remove itself."""
        with contextlib.suppress(OSError):
            generations.remove_files(self._run_dir, self.generation)

    def close(self) -> None:
        """Lets go of the core, which goes on; whoever asks it something gets CoreGone."""
        self._unwatch()
        self._client.close()

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
