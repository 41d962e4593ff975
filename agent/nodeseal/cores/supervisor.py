"""The agent's hold on the node's cores: adopt or start them, notice their end, replace one by the next.

One core is `current`: it has the listeners of all workloads. The others are `older`. They come from upgrades: a new
core is started beside the one that runs, the workloads are handed over while both accept from the same listening
sockets, and then the older one is retired: it lets the listeners go and ends with its last connection.

    start a new core -> mesh state -> workloads, credentials, listeners -> retire the one before -> it ends by itself

So there is no moment at which a connection finds nobody, and nothing has to be taken back when a step fails: the core
before goes on. After a crash the same steps are taken without a core before; the agent's own copies of the listeners
keep what dials meanwhile.

A new core knows nothing. `on_start` gives it the mesh state before anything else (without one it allows nothing); only
then is it `ready` and do the enrolments hand their workloads over. Each core has a number, its incarnation, by which
an enrolment knows whether the present core already has its workload.

Of a core whose version of the control protocol this agent does not speak only the requests that all versions have in
common are asked: it is replaced at once, and decides about its connections by the mesh state that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
from collections.abc import Awaitable, Callable, Sequence, Set
from enum import StrEnum
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import psutil

from nodeseal.backoff import Backoff
from nodeseal.contracts.status import CoreRow
from nodeseal.cores import place
from nodeseal.cores.client import CoreClient, CoreError, CoreGone, Hello
from nodeseal.cores.link import CoreLink
from nodeseal.cores.process import CoreOptions, spawn
from nodeseal.linux import lock_file
from nodeseal.local import generations, run_directory

log = logging.getLogger("nodeseal.agent")

P = ParamSpec("P")
T = TypeVar("T")

StartCore = Callable[[Path, CoreOptions, int], subprocess.Popen[bytes]]

_CRASHES_WITHIN_S = 600.0  # are shown
_LOOP_WITHIN_S = 60.0
_CRASHES_AT_ONCE = 3  # in that time are answered by a start at once, further ones later and later
_MEMORY_CHECK_S = 5.0
_MEMORY_FLOOR = 0.05  # of the node's memory: with less available, the oldest core has to go
_END_PATIENCE_S = 10.0
_LOG_LIMIT = 16 << 20  # bytes of core.log from which the next core begins a new one


class CoreState(StrEnum):
    """What `nodeseal status` says of the core."""

    RUNNING = "running"
    STARTING = "starting"
    NOT_RUNNING = "not-running"


class CoreSupervisor:
    """Keeps a core running for `run_dir`. All methods belong to the event loop."""

    def __init__(
        self,
        run_dir: Path,
        options: CoreOptions,
        *,
        on_start: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
        start: StartCore = spawn,
        drain_limit: float | None = None,
    ) -> None:
        """`drain_limit`: how long a retired core may go on with its connections, in seconds; None: as long as they
        last."""
        self._run_dir = run_dir
        self._options = options
        self._on_start = on_start
        self._on_change = on_change
        self._spawn = start
        self._drain_limit = drain_limit
        self._starting = asyncio.Lock()
        self._lost = asyncio.Event()  # the current core has ended
        self._untidy = asyncio.Event()  # a core has ended, or may have before this agent came
        self._untidy.set()
        self._crashes: list[float] = []  # when, on the event loop's clock; the last few minutes
        self._starved: list[float] = []  # the same, of those that needed more memory than they may have
        self._incarnations = 0
        self._generation = 0
        self.current: CoreLink | None = None
        self.older: list[CoreLink] = []
        self.state = CoreState.NOT_RUNNING
        self.error: str | None = None
        self.ready = False
        self.started_here = False

    @property
    def pid(self) -> int | None:
        """The current core's; None while there is none."""
        return self.current.pid if self.current is not None else None

    @property
    def incarnation(self) -> int:
        """The number of the current core; 0: there is none."""
        return self.current.incarnation if self.current is not None else 0

    @property
    def outdated(self) -> bool:
        """Another core is installed than the one that runs."""
        return self.current is not None and self.current.build != generations.build()

    def links(self) -> list[CoreLink]:
        """All cores that can be asked everything, the current one first."""
        current = [self.current] if self.current is not None else []
        return [link for link in (*current, *self.older) if link.spoken and not link.ended.is_set()]

    def link(self, incarnation: int) -> CoreLink | None:
        """The core of this number; None: it has ended."""
        return next((link for link in self.links() if link.incarnation == incarnation), None)

    # ---- beginning and end

    async def begin(self) -> None:
        """Adopts the cores that run, the newest as the current one, or starts one. None is `ready` yet. Raises
        CoreError."""
        known = generations.known(self._run_dir)
        for generation in known:
            self._generation = generation
            try:
                found = await self._adopt(generation)
            except CoreError as error:
                if generation == known[-1]:
                    raise
                log.warning("the core of generation %d is left to itself: %s", generation, error)
                continue
            if found is None:
                self._forget_dead(generation)
                continue
            link = self._link(*found)
            self.older.append(link)
            link.watch(self._on_end)
            try:
                await asyncio.to_thread(place.bound, self._run_dir, self._options.settings, generation)
            except OSError as error:
                log.warning("the core of generation %d keeps its limits: %s: %s", generation, error.filename, error)
            log.info("adopted a running core, pid %d, generation %d, %s", link.pid, generation, link.build)
        newest = self.older[-1] if self.older else None
        if newest is not None and newest.spoken and not newest.retired:
            self.older.remove(newest)
            self._make_current(newest)
        else:
            await self._start()

    def _forget_dead(self, generation: int) -> None:
        """Removes what a core left that was killed while no agent ran, or before this one knew it."""
        if lock_file.holder(generations.lock_path(self._run_dir, generation)) is None:
            with contextlib.suppress(OSError):
                generations.remove_files(self._run_dir, generation)

    def set_ready(self) -> None:
        """The core has its mesh state: workloads may be handed over."""
        self.ready = True
        self._on_change()

    async def run(self) -> None:
        """Replaces every current core that ends, until cancelled. May be begun again where it has failed."""
        if self.current is None:
            self._lost.set()
        memory = asyncio.create_task(self._watch_memory(), name="memory")
        tidying = asyncio.create_task(self._keep_tidy(), name="tidy")
        backoff = Backoff(0.5, 30.0)
        try:
            while True:
                await self._lost.wait()
                self._lost.clear()
                if self.current is not None:
                    continue  # replaced meanwhile
                if self._recent_crashes(_LOOP_WITHIN_S) <= _CRASHES_AT_ONCE:
                    backoff.reset()
                    delay = 0.0
                else:
                    delay = backoff.next()
                    self.error = f"{self.error}; next start in {delay:.1f} s"
                    log.error("%s", self.error)
                self._on_change()
                while self.current is None:
                    await asyncio.sleep(delay)
                    try:
                        async with self._starting:
                            await self._start()
                    except Exception as error:
                        delay = backoff.next()
                        self.state, self.error = CoreState.NOT_RUNNING, _line(error)
                        log.error("%s; next try in %.0f s", self.error, delay)
                await self._introduce()
        finally:
            memory.cancel()
            tidying.cancel()

    async def upgrade(self) -> CoreLink:
        """Starts a new core beside the current one and makes it the current one; the workloads are handed over by
        their enrolments, and then retire_older() is due. The new one. Raises CoreError, with all as it was."""
        async with self._starting:
            if self.current is None:
                raise CoreError(f"there is no core to be upgraded: {self.error or 'none runs'}")
            await self._start()
            link = self.current
        await self._introduce()
        if self.current is not link:
            raise CoreError(self.error or "the new core ended at once")
        return link

    async def retire_older(self) -> None:
        """The older cores let go of their listeners and finish what they have. For when the current one has all."""
        for link in self.older:
            if link.retired or link.ended.is_set():
                continue
            try:
                await link.call(CoreClient.retire, self._drain_limit)
            except CoreGone:
                continue
            except CoreError as error:
                log.warning("the core of generation %d was not retired: %s", link.generation, error)
                continue
            link.retired, link.since = True, asyncio.get_running_loop().time()
            log.info("the core of generation %d, pid %d, finishes its connections", link.generation, link.pid)

    @property
    def unretired(self) -> bool:
        """Whether an older core still accepts connections."""
        return any(not link.retired and not link.ended.is_set() for link in self.older)

    async def stop_core(self) -> None:
        """Ends the current core: for a start that failed half way."""
        link = self.current
        if link is None:
            return
        with contextlib.suppress(CoreError, TimeoutError):
            await link.call(CoreClient.stop)
            await asyncio.wait_for(link.ended.wait(), _END_PATIENCE_S)
        await self._tidy({one.generation for one in self.older})

    def close(self) -> None:
        """Lets go of the cores, which go on."""
        for link in (*self.older, *([self.current] if self.current is not None else [])):
            link.close()

    # ---- asking

    async def call(
        self, method: Callable[Concatenate[CoreClient, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """CoreClient's method, asked of the current core. Raises CoreError, CoreGone while no core runs."""
        if self.current is None:
            raise CoreGone(self.error or "the core is not running")
        return await self.current.call(method, *args, **kwargs)

    async def call_all(
        self, method: Callable[Concatenate[CoreClient, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> list[tuple[CoreLink, T]]:
        """The same of every core; (core, answer) of each. Raises what the current one raises; older ones that end or
        refuse are left out."""
        if self.current is None:
            raise CoreGone(self.error or "the core is not running")
        current, older = self.current, [link for link in self.links() if link is not self.current]
        answers = [(current, await current.call(method, *args, **kwargs))]
        for link in older:
            with contextlib.suppress(CoreError):
                answers.append((link, await link.call(method, *args, **kwargs)))
        return answers

    # ---- inside

    async def _adopt(self, generation: int) -> tuple[Hello, CoreClient] | None:
        client = CoreClient(self._run_dir, generation)
        try:
            hello = await client.hello()
            if hello.trust_domain != self._options.trust_domain:
                raise CoreError(
                    f"the running core (pid {hello.pid}) is for the trust domain {hello.trust_domain}, the CA is for "
                    f"{self._options.trust_domain}; run '{run_directory.command('cleanup', self._run_dir)}' first"
                )
        except CoreGone:
            client.close()
            return None
        except BaseException:
            client.close()
            raise
        return hello, client

    async def _start(self) -> None:
        """Starts a core and makes it the current one. Raises CoreError."""
        if self.current is None:
            self.state = CoreState.STARTING
        self._generation += 1
        generation = self._generation

        client = CoreClient(self._run_dir, generation)
        try:
            await asyncio.to_thread(self._rotate_log)
            process = await asyncio.to_thread(self._spawn, self._run_dir, self._options, generation)
            hello = await client.hello()
        except BaseException as error:
            client.close()
            if isinstance(error, CoreError):
                self._forget_dead(generation)
                await self._tidy({one.generation for one in (self.current, *self.older) if one is not None})
            raise
        link = self._link(hello, client, process)
        self.started_here = True
        self._untidy.set()
        log.info("started a core, pid %d, generation %d", hello.pid, generation)
        if self.current is not None:
            self.older.append(self.current)
        self._make_current(link)
        link.watch(self._on_end)

    def _link(self, hello: Hello, client: CoreClient, process: subprocess.Popen[bytes] | None = None) -> CoreLink:
        self._incarnations += 1
        return CoreLink(self._run_dir, hello, client, self._incarnations, process)

    def _make_current(self, link: CoreLink) -> None:
        self.current, self.state, self.error, self.ready = link, CoreState.RUNNING, None, False

    async def _introduce(self) -> None:
        """The current core gets the mesh state."""
        await self._on_start()
        if self.current is not None:
            self.set_ready()

    def _on_end(self, link: CoreLink) -> None:
        text = f"the core (pid {link.pid}, generation {link.generation}) ended{link.exit_text()}"
        starved = place.lacked_memory(self._run_dir, link.generation)
        if starved:
            text += ": it needed more memory than 'core.memory' lets it have"
        self._untidy.set()
        link.forget_files()
        link.close()
        if link in self.older:
            self.older.remove(link)
            log.log(logging.INFO if link.retired else logging.ERROR, "%s", text)
            self._on_change()
            return
        if link is not self.current:
            return
        now = asyncio.get_running_loop().time()
        self._crashes = [at for at in self._crashes if now - at < _CRASHES_WITHIN_S] + [now]
        self._starved = [at for at in self._starved if now - at < _CRASHES_WITHIN_S] + [now] * starved
        self.current, self.state, self.ready = None, CoreState.STARTING, False
        self.error = text if len(self._crashes) == 1 else f"{text}, the {_th(len(self._crashes))} time in 10 minutes"
        log.error("%s", self.error)
        self._lost.set()
        self._on_change()

    async def _watch_memory(self) -> None:
        """Old connections are kept for as long as the node has memory: then the oldest core ends with those it has."""
        while True:
            await asyncio.sleep(_MEMORY_CHECK_S)
            if not self.older:
                continue
            try:
                available, total = available_memory()
            except OSError as error:
                log.warning("cannot see the node's memory: %s", error)
                continue
            oldest = min(self.older, key=lambda link: link.generation)
            if available >= _MEMORY_FLOOR * total or not oldest.retired:
                continue
            log.error(
                "the node has only %d MiB of memory available: the core of generation %d, pid %d, ends, and its "
                "connections with it",
                available >> 20,
                oldest.generation,
                oldest.pid,
            )
            with contextlib.suppress(CoreError):
                await oldest.call(CoreClient.stop)

    async def _keep_tidy(self) -> None:
        """What cores had outside of their processes goes with them; see place.tidy."""
        while True:
            await self._untidy.wait()
            self._untidy.clear()
            # A core that starts has a cgroup before it is there to be seen.
            running = {link.generation for link in (self.current, *self.older) if link is not None}
            await self._tidy(running | {self._generation})

    async def _tidy(self, running: Set[int]) -> None:
        # One that is started while this goes on has a cgroup before anybody is in it.
        kept = {*running, self._generation + 1}
        try:
            await asyncio.to_thread(place.tidy, self._run_dir, kept)
        except OSError as error:
            log.warning("cannot remove what a core left: %s: %s", error.filename, error.strerror or error)

    def _rotate_log(self) -> None:
        path = self._run_dir / generations.LOG_NAME
        with contextlib.suppress(OSError):
            if path.stat().st_size > _LOG_LIMIT:
                path.replace(path.with_name(path.name + ".1"))

    def describe(self) -> CoreRow:
        """The "core" part of the status, without what the core tells."""
        current = self.current
        return CoreRow(
            pid=self.pid,
            state=self.state.value,
            error=self.error,
            generation=current.generation if current is not None else None,
            version=current.version if current is not None else None,
            outdated=self.outdated,
            crashes=self._recent_crashes(_CRASHES_WITHIN_S),
            starved=_recent(self._starved, _CRASHES_WITHIN_S),
        )

    def _recent_crashes(self, seconds: float) -> int:
        return _recent(self._crashes, seconds)


def _recent(times: Sequence[float], seconds: float) -> int:
    now = asyncio.get_running_loop().time()
    return sum(now - at < seconds for at in times)


def available_memory() -> tuple[int, int]:
    """(bytes that can be had without swapping, bytes in all) of this machine."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)


def _th(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"
