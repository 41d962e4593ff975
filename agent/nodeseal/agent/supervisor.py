"""The agent's hold on the core process: adopt or start it, notice its end, start the next one.

A core's end is seen on a pidfd (pidfd_open(2)), which works for a core that this agent started and for one that it
adopted. Calls to the core block, so they are made in one thread of their own, one after the other.

A new core knows nothing. `on_start` gives it the mesh state before anything else (without one it allows nothing); only
then is it `ready` and do the enrolments hand their workloads over. Each core has a number, its incarnation, by which
an enrolment knows whether the present core already has its workload.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from nodeseal.agent.backoff import Backoff
from nodeseal.core.bridge import CoreClient, CoreError, CoreGone, CoreOptions, Hello, spawn

log = logging.getLogger("nodeseal.agent")

P = ParamSpec("P")
T = TypeVar("T")

StartCore = Callable[[Path, CoreOptions], subprocess.Popen[bytes]]

_STABLE_AFTER_S = 30.0


class CoreState(StrEnum):
    """What `nodeseal status` says of the core."""

    RUNNING = "running"
    STARTING = "starting"
    NOT_RUNNING = "not-running"


class CoreSupervisor:
    """Keeps one core running for `run_dir`."""

    def __init__(
        self,
        run_dir: Path,
        options: CoreOptions,
        *,
        on_start: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
        start: StartCore = spawn,
    ) -> None:
        self._run_dir = run_dir
        self._options = options
        self._on_start = on_start
        self._on_change = on_change
        self._spawn = start
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="core")
        self._client: CoreClient | None = None  # the core thread's own
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._ended = asyncio.Event()
        self.state = CoreState.NOT_RUNNING
        self.pid: int | None = None
        self.error: str | None = None
        self.incarnation = 0
        self.ready = False
        self.started_here = False

    async def begin(self) -> Hello:
        """Adopts the running core or starts one; what it says of itself. It is not `ready` yet. Raises CoreError."""
        hello = await self.run_blocking(self._adopt)
        if hello is None:
            hello = await self._start()
        else:
            log.info("adopted the running core, pid %d, version %s, epoch %d", hello.pid, hello.version, hello.epoch)
        self._watch(hello)
        return hello

    def set_ready(self) -> None:
        """The core has its mesh state: workloads may be handed over."""
        self.ready = True
        self._on_change()

    async def run(self) -> None:
        """Replaces every core that ends, until cancelled."""
        backoff = Backoff(0.2, 30.0)
        loop = asyncio.get_running_loop()
        while True:
            since = loop.time()
            await self._ended.wait()
            self._unwatch()
            self.state, self.ready = CoreState.STARTING, False
            self.error = f"the core (pid {self.pid}) ended{self._exit_text()}"
            self.pid = None
            log.error("%s; starting another", self.error)
            self._on_change()
            if loop.time() - since > _STABLE_AFTER_S:
                backoff.reset()
            while True:
                await asyncio.sleep(backoff.next())
                try:
                    # A core may be there already: one whose control connection was lost is adopted again.
                    hello = await self.run_blocking(self._adopt)
                    self._watch(hello if hello is not None else await self._start())
                    break
                except Exception as error:
                    self.state, self.error = CoreState.NOT_RUNNING, " ".join(str(error).split()) or repr(error)
                    log.error("%s", self.error)
            await self._on_start()
            self.set_ready()

    async def call(self, method: Callable[Concatenate[CoreClient, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """CoreClient's method, in the core thread. Raises CoreError, CoreGone while no core runs."""
        if self.state is not CoreState.RUNNING:
            raise CoreGone(self.error or "the core is not running")
        return await self.run_blocking(self._with_client, lambda client: method(client, *args, **kwargs))

    async def run_blocking(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function in the core thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    async def stop_core(self) -> None:
        """Ends the core: for a start that failed half way."""
        with contextlib.suppress(CoreError):
            await self.call(CoreClient.stop)
            if self._process is not None:
                await self.run_blocking(self._process.wait, 10)

    def close(self) -> None:
        """Lets go of the core, which goes on; waits for the call in hand."""
        self._unwatch()
        self._thread.shutdown(wait=True)
        if self._client is not None:
            self._client.close()
            self._client = None

    def _adopt(self) -> Hello | None:
        try:
            client = CoreClient.connect(self._run_dir)
        except CoreGone:
            return None
        try:
            hello = client.hello()
        except BaseException:
            client.close()
            raise
        if hello.trust_domain != self._options.trust_domain:
            client.close()
            raise CoreError(
                f"the running core (pid {hello.pid}) is for the trust domain {hello.trust_domain}, the CA is for "
                f"{self._options.trust_domain}; run 'nodeseal cleanup' first"
            )
        self._replace_client(client)
        return hello

    async def _start(self) -> Hello:
        self.state = CoreState.STARTING

        def start() -> tuple[subprocess.Popen[bytes], Hello]:
            process = self._spawn(self._run_dir, self._options)
            client = CoreClient.connect(self._run_dir)
            self._replace_client(client)
            return process, client.hello()

        self._process, hello = await self.run_blocking(start)
        self.started_here = True
        log.info("started a core, pid %d", hello.pid)
        return hello

    def _replace_client(self, client: CoreClient) -> None:
        if self._client is not None:
            self._client.close()
        self._client = client

    def _with_client(self, method: Callable[[CoreClient], T]) -> T:
        if self._client is None:
            client = CoreClient.connect(self._run_dir)
            if client.pid != self.pid:
                client.close()
                raise CoreGone("the core is being replaced")
            self._client = client
        try:
            return method(self._client)
        except CoreError:
            if self._client.broken:
                self._client.close()
                self._client = None
            raise

    def _watch(self, hello: Hello) -> None:
        self.state, self.error, self.pid = CoreState.RUNNING, None, hello.pid
        self.incarnation += 1
        self._ended.clear()
        try:
            self._pidfd = os.pidfd_open(hello.pid)
        except ProcessLookupError:
            self._ended.set()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._ended.set()

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _exit_text(self) -> str:
        if self._process is None or self._process.pid != self.pid:
            return ""
        status = self._process.poll()
        if status is None:
            return ""
        return f" by signal {-status}" if status < 0 else f" with exit status {status}"

    def describe(self) -> dict[str, Any]:
        """The "core" part of the status."""
        return {"pid": self.pid, "state": self.state.value, "error": self.error}
