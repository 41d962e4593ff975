"""One term of an agent as the active one of its node: it begins, serves, and ends when it is told to, or when another
agent takes over.

When it ends, core, capture and publication stay as they are, for the agent that comes next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator
from enum import Enum, auto
from http import HTTPStatus
from pathlib import Path

from nodeseal import __version__
from nodeseal.api import operations
from nodeseal.api.exchange import RequestError
from nodeseal.api.server import ApiServer, Served
from nodeseal.capture.node import NodeCapture
from nodeseal.contracts import api
from nodeseal.contracts.rows import Parameters
from nodeseal.cores.client import CoreError
from nodeseal.daemon.composition import source_at
from nodeseal.daemon.errors import StartError
from nodeseal.daemon.held_directory import HeldDirectory
from nodeseal.daemon.pod_starts import PodStarts
from nodeseal.daemon.process_health import ProcessHealth
from nodeseal.daemon.reporter import Reporter
from nodeseal.enrolment.capture_thread import CaptureThread
from nodeseal.identity.issuer import Issuer, IssuerError
from nodeseal.linux.errors import LinuxError
from nodeseal.local import registry, run_directory
from nodeseal.local.config import Config
from nodeseal.local.registry import Registered
from nodeseal.node.node import Node
from nodeseal.sources.source import ClaimError, PublicationError, Source

log = logging.getLogger("nodeseal.agent")


class TermEnd(Enum):
    """Why a term has ended."""

    TOLD = auto()
    """The process is to end."""
    HANDED_OVER = auto()
    """Another agent has asked for it."""


class Term:
    """`ending` is set when the process is to end; `path`: where the configuration was read from."""

    def __init__(self, config: Config, path: Path, ending: asyncio.Event, health: ProcessHealth) -> None:
        self._config = config
        self._path = path
        self._ending = ending
        self._health = health
        self._asked_for = asyncio.Event()

    async def serve(self, held: HeldDirectory, source: Source, issuer: Issuer) -> TermEnd:
        """Closes the issuer at its end, and leaves the directory to the caller. Raises StartError."""
        try:
            async with _claimed(source):
                with _registered(self._config, self._path):
                    try:
                        return await self._serve(held, source, issuer)
                    except (CoreError, IssuerError, LinuxError, PublicationError) as error:
                        raise StartError(str(error)) from None
                    except OSError as error:
                        raise StartError(f"cannot start in {held.path}: {error}") from None
        finally:
            await issuer.close()

    async def _serve(self, held: HeldDirectory, source: Source, issuer: Issuer) -> TermEnd:
        config, lock = self._config, held.lock
        log.info("agent %s for node %s, run directory %s", __version__, config.node, config.run_dir)
        node = Node(
            config,
            issuer,
            source,
            CaptureThread(NodeCapture(config.run_dir, config.cgroup, config.capture, truthful=config.truthful)),
            source_at=source_at,
            last_seen=lock.previous_touch,
            sign_of_life=lock.touch,
        )
        served = [*operations.of_node(node), Served(api.HAND_OVER, self._hand_over)]
        server = ApiServer(config.run_dir / run_directory.AGENT_SOCKET, served, unavailable=operations.UNAVAILABLE)
        pod_starts, reporter = PodStarts(config, node), Reporter(node, source)
        try:
            # Whoever asks meanwhile is told what takes so long.
            await server.start()
            await pod_starts.answer()
            await node.begin()
        except BaseException:
            await pod_starts.stop()
            await server.stop()
            node.close()
            raise
        try:
            run_directory.write_pid(config.run_dir / run_directory.AGENT_PID)
            log.info("agent has begun, pid %d", os.getpid())
            await pod_starts.keep()
            reporter.start()
            with self._health.of(node.unready):
                end = await self._until_told()
        finally:
            await reporter.stop()
            await pod_starts.stop()
            await server.stop()
            await node.end()
        return end

    async def _until_told(self) -> TermEnd:
        waiting = [asyncio.create_task(event.wait()) for event in (self._ending, self._asked_for)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        if self._ending.is_set():
            log.info("agent goes; the core and what is captured stay")
            return TermEnd.TOLD
        log.info("another agent takes over; this one stands by")
        return TermEnd.HANDED_OVER

    async def _hand_over(self, _parameters: Parameters) -> api.HandedOver:
        if not self._config.hand_over:
            text = "the configuration of the agent that runs has no 'hand_over: true': stop it first"
            raise RequestError(HTTPStatus.CONFLICT, text)
        self._asked_for.set()
        return api.HandedOver(node=self._config.node, version=__version__, pid=os.getpid())


@contextlib.asynccontextmanager
async def _claimed(source: Source) -> AsyncIterator[None]:
    """The node's publication is this agent's alone."""
    try:
        claim = await source.claim()
    except ClaimError as error:
        raise StartError(str(error)) from None
    failed = False
    try:
        yield
    except StartError:
        failed = True
        raise
    finally:
        await claim.release(undo=failed)


@contextlib.contextmanager
def _registered(config: Config, path: Path) -> Iterator[None]:
    """Commands find this node from now on."""
    before = registry.note_of(config.run_dir)
    try:
        registry.register(Registered(config.run_dir, config.node, path, registry.own_namespace()))
    except OSError as error:
        log.warning(
            "commands find this node by --run-dir %s only: it cannot be noted in %s: %s",
            config.run_dir,
            registry.DIRECTORY,
            error.strerror or error,
        )
    try:
        yield
    except StartError:
        with contextlib.suppress(OSError):
            if before is None:
                registry.forget(config.run_dir)
            else:
                registry.register(before)
        raise
