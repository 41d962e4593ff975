"""Parts of the agent that run for as long as it does: one that fails is begun again, for nobody would miss it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from nodeseal.backoff import Backoff

log = logging.getLogger("nodeseal.agent")

_FIRST_S, _LONGEST_S = 1.0, 60.0


async def lasting(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `work` until it returns, again and again while it raises. Never raises."""
    backoff, clock = Backoff(_FIRST_S, _LONGEST_S), asyncio.get_running_loop().time
    while True:
        begun = clock()
        try:
            return await work()
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic in cryptography's Rust is no Exception
            if clock() - begun > _LONGEST_S:
                backoff.reset()
            log.exception("the part %r of the agent has failed, and begins again", name)
        await asyncio.sleep(backoff.next())
