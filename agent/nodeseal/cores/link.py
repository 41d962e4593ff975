"""One core process as the agent holds it.

Calls to a core block, so each core has a thread that makes them, one after the other: one that does not answer keeps
nobody waiting but those who ask it. A core's end is seen on a pidfd (pidfd_open(2)), which works for a core that this
agent started and for one that it adopted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from nodeseal.cores.client import CoreClient, CoreError, CoreGone, Hello
from nodeseal.linux import control_socket
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
        self.same_protocol = hello.protocol == control_socket.PROTOCOL
        self.hello = hello
        self.incarnation = incarnation
        self.since = asyncio.get_running_loop().time()
        self.ended = asyncio.Event()
        self._run_dir = run_dir
        self._client: CoreClient | None = client
        self._process = process
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"core-{hello.generation}")
        self._pidfd = -1

    def watch(self, on_end: Callable[[CoreLink], None]) -> None:
        """Calls `on_end`, once, when the process has ended; at once if it has already."""

        def noticed() -> None:
            self._unwatch()
            self.ended.set()
            on_end(self)

        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            noticed()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, noticed)

    async def call(self, method: Callable[Concatenate[CoreClient, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """CoreClient's method, in the core's thread. Raises CoreError, CoreGone when it has ended."""
        if self.ended.is_set():
            raise CoreGone(f"the core (pid {self.pid}) has ended")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: self._with_client(method, *args, **kwargs))

    def _with_client(self, method: Callable[Concatenate[CoreClient, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._client is None:
            client = CoreClient.connect(self._run_dir, generation=self.generation)
            if client.pid != self.pid:
                client.close()
                raise CoreGone(f"the core (pid {self.pid}) is another process by now")
            self._client = client
        try:
            return method(self._client, *args, **kwargs)
        except CoreError:
            if self._client.broken:
                self._close_client()
            raise

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

    def close(self, *, wait: bool = True) -> None:
        """Lets go of the core, which goes on; `wait`: for the call in hand."""
        self._unwatch()
        self._thread.submit(self._close_client)  # behind that call
        self._thread.shutdown(wait=wait)

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
