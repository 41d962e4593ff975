"""The agent's process: `nodeseal agent --config FILE`. It checks, becomes active for its run directory, serves, and
goes on SIGTERM or SIGINT.

When it goes, core and capture stay as they are, for the agent that comes next. A start that fails says why in one line
and leaves nothing that was not there before. With `hand_over: true` several agents may run for one run directory, see
succession.py; without it the second one is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType

from nodeseal.backoff import Backoff
from nodeseal.daemon.composition import issuer_of, source_of
from nodeseal.daemon.errors import StartError
from nodeseal.daemon.held_directory import HeldDirectory
from nodeseal.daemon.preparation import Preparation
from nodeseal.daemon.process_health import ProcessHealth
from nodeseal.daemon.succession import Succession
from nodeseal.daemon.term import Term, TermEnd
from nodeseal.daemon.verify import verify
from nodeseal.identity.issuer import Issuer, IssuerError
from nodeseal.linux import hardening
from nodeseal.linux.lock_file import AlreadyLocked
from nodeseal.local import config as configuration
from nodeseal.local.config import Config, ConfigError
from nodeseal.sources.source import Source

log = logging.getLogger("nodeseal.agent")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SWITCH_S = 0.001  # the event loop waits no longer for the lock while a thread reads a large mesh state


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
    try:
        asyncio.run(_run(config, path.absolute(), issuer))
    finally:
        # Python takes its own handlers off before the process has ended (see _told_to_end).
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return 0


async def _run(config: Config, path: Path, issuer: Issuer) -> None:
    ending = _told_to_end()
    health, succession = ProcessHealth(config.health_directory), Succession(config.run_dir, ending)
    async with _beating(health):
        source = source_of(config)
        try:
            if config.hand_over:
                held = await succession.take(Preparation(config, source).prepare)
            else:
                held = _held_alone(config.run_dir)
            if held is None:
                await issuer.close()
            elif await _serve(held, Term(config, path, ending, health), source, issuer, succession):
                await _stand_by(config, path, ending, health, succession)
        finally:
            succession.close()


def _told_to_end() -> asyncio.Event:
    """Set by a signal. Python's handlers, which stay when the loop's own have gone: the kubelet sends SIGTERM again
    when it is restarted, and that must not end what is on its way out."""
    ending, loop = asyncio.Event(), asyncio.get_running_loop()

    def told(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(ending.set)

    for number in _SIGNALS:
        signal.signal(number, told)
    return ending


async def _serve(held: HeldDirectory, term: Term, source: Source, issuer: Issuer, succession: Succession) -> bool:
    """Whether another agent has taken over; this one is seen to stand by then. Raises StartError."""
    with held.let_go_at_the_end():
        if await term.serve(held, source, issuer) is TermEnd.TOLD:
            return False
        # Before the lock goes: who cleans up must find it.
        succession.stand_by()
    return True


async def _stand_by(
    config: Config, path: Path, ending: asyncio.Event, health: ProcessHealth, succession: Succession
) -> None:
    """An agent that has let go: it takes over again whenever nobody is active, until it is told to end."""
    backoff = Backoff(1.0, 60.0)
    while (held := await succession.take_again()) is not None:
        try:
            issuer = issuer_of(config)
            term = Term(config, path, ending, health)
            if not await _serve(held, term, source_of(config), issuer, succession):
                return
            backoff.reset()
        except (StartError, IssuerError) as error:
            log.error("cannot take over again: %s", error)
            succession.stand_by()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), backoff.next())


def _held_alone(run_dir: Path) -> HeldDirectory:
    try:
        return HeldDirectory(run_dir)
    except AlreadyLocked as error:
        raise StartError(f"another agent (pid {error.pid}) runs for {run_dir}; stop it first") from None


@contextlib.asynccontextmanager
async def _beating(health: ProcessHealth) -> AsyncIterator[None]:
    try:
        health.begin()
    except OSError as error:
        raise StartError(f"cannot write the health_directory: {error.filename}: {error.strerror or error}") from None
    beating = asyncio.create_task(health.run(), name="health")
    try:
        yield
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
