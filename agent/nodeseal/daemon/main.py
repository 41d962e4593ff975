"""The agent's process: `nodeseal agent --config FILE`. It checks, begins, serves, and goes on SIGTERM or SIGINT.

When it goes, core and capture stay as they are, for the agent that comes next. A start that fails says why in one line
and leaves nothing that was not there before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from nodeseal import __version__
from nodeseal.api import operations
from nodeseal.api.server import ApiServer
from nodeseal.capture.node import NodeCapture
from nodeseal.cores.client import CoreError
from nodeseal.daemon.composition import issuer_of, source_at, source_of
from nodeseal.daemon.verify import verify
from nodeseal.enrolment.capture_thread import CaptureThread
from nodeseal.identity.issuer import Issuer, IssuerError
from nodeseal.linux import hardening
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.lock_file import AlreadyLocked, LockFile
from nodeseal.local import config as configuration
from nodeseal.local import registry, run_directory
from nodeseal.local.config import Config, ConfigError
from nodeseal.local.registry import Registered
from nodeseal.node.node import Node
from nodeseal.sources.source import ClaimError, PublicationError, Source

log = logging.getLogger("nodeseal.agent")

_SWITCH_S = 0.001  # the event loop waits no longer for the lock while a thread reads a large mesh state


class StartError(Exception):
    """The agent cannot run; one line (a configuration error: one line a problem)."""


def run(path: Path) -> int:
    """Runs the agent with a configuration file until it is told to go. Raises StartError."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        config = configuration.load(path)
    except ConfigError as error:
        raise StartError(str(error)) from None
    if os.geteuid() != 0:
        raise StartError("the agent needs root's privileges: run it as root")
    try:
        verify(path, config)
        sys.setswitchinterval(_SWITCH_S)
        hardening.forbid_dumps()
        hardening.raise_descriptor_limit()
        issuer = issuer_of(config)
    except (ConfigError, IssuerError) as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"cannot prepare the agent's process: {error.strerror or error}") from None
    with _run_directory(config.run_dir) as lock:
        asyncio.run(_run(config, path.absolute(), issuer, lock))
    return 0


async def _run(config: Config, path: Path, issuer: Issuer, lock: LockFile) -> None:
    source = source_of(config)
    async with _claimed(source):
        with _registered(config, path):
            try:
                await _serve(config, source, issuer, lock)
            except (CoreError, IssuerError, LinuxError, PublicationError) as error:
                raise StartError(str(error)) from None
            except OSError as error:
                raise StartError(f"cannot start in {config.run_dir}: {error}") from None
            finally:
                await issuer.close()


async def _serve(config: Config, source: Source, issuer: Issuer, lock: LockFile) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
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
    api = ApiServer(
        config.run_dir / run_directory.AGENT_SOCKET, operations.of_node(node), unavailable=operations.UNAVAILABLE
    )
    try:
        # Whoever asks meanwhile is told what takes so long.
        await api.start()
        await node.begin()
    except BaseException:
        await api.stop()
        node.close()
        raise
    try:
        run_directory.write_pid(config.run_dir / run_directory.AGENT_PID)
        log.info("agent is ready, pid %d", os.getpid())
        await told.wait()
        log.info("agent goes; the core and what is captured stay")
    finally:
        await api.stop()
        await node.end()


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


@contextlib.contextmanager
def _run_directory(run_dir: Path) -> Iterator[LockFile]:
    """The run directory with its lock held. After a StartError nothing is in it that was not there before."""
    existed = run_dir.is_dir()
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = {entry.name for entry in run_dir.iterdir()}
        lock = LockFile(run_dir / run_directory.AGENT_LOCK)
    except AlreadyLocked as error:
        raise StartError(f"another agent (pid {error.pid}) runs for {run_dir}; stop it first") from None
    except OSError as error:
        raise StartError(f"cannot use the run directory {run_dir}: {error.strerror or error}") from None
    failed = False
    try:
        yield lock
    except StartError:
        failed = True
        for path in run_directory.own_files(run_dir):
            if path.name not in before:
                with contextlib.suppress(OSError):
                    path.unlink()
        raise
    finally:
        with contextlib.suppress(OSError):
            (run_dir / run_directory.AGENT_PID).unlink()
        lock.release(remove=failed)
        if failed and not existed:
            with contextlib.suppress(OSError):
                run_dir.rmdir()
