"""What an agent does until it is ready: `nodeseal status` says it, and the log what takes long.

A first start compiles the BPF programs, for ten seconds on a slow machine; a core that has to be killed, or a large
mesh state, take long as well. Whoever asks meanwhile is told so, instead of that no agent runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from nodeseal.clock import utc_now

log = logging.getLogger("nodeseal.agent")

_LONG_S = 1.0


class StartingError(Exception):
    """What is asked for can be had when the agent has started; one line."""


class Starting:
    """`doing`: the present step, in words that stand after "the agent is starting: "; None once it is ready."""

    def __init__(self) -> None:
        self.since = utc_now()
        self.doing: str | None = "reading its configuration"

    @contextlib.contextmanager
    def step(self, doing: str) -> Iterator[None]:
        """For as long as `doing` goes on. Needs a running event loop."""
        self.doing = doing
        loop = asyncio.get_running_loop()
        began = loop.time()
        timer = loop.call_later(_LONG_S, lambda: log.info("still starting: %s", doing))
        try:
            yield
        finally:
            timer.cancel()
            if (took := loop.time() - began) >= _LONG_S:
                log.info("%s took %.1f s", doing, took)

    def done(self) -> None:
        """The agent is ready."""
        self.doing = None

    @property
    def seconds(self) -> float:
        """Since the agent began."""
        return (utc_now() - self.since).total_seconds()

    def check(self) -> None:
        """Raises StartingError until the agent is ready."""
        if self.doing is not None:
            raise StartingError(f"the agent is starting: {self.doing}, for {self.seconds:.0f} s so far; ask again")
