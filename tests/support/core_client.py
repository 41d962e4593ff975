"""A core asked by a test: the agent's client of it, for code that does not run on an event loop, or must not await."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from nodeseal.cores.client import CoreClient

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate[CoreClient, P], Coroutine[Any, Any, T]]


class BlockingClient:
    """A CoreClient whose methods return answers in place of awaitables. Its connection lasts until close()."""

    def __init__(self, make: Callable[[], CoreClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="core client", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(_made(make))
        except BaseException:
            self._end()
            raise

    @classmethod
    def newest(cls, run_dir: Path) -> Self:
        """Of the newest core that runs. Raises CoreGone."""
        return cls(lambda: CoreClient.newest(run_dir))

    @classmethod
    def of(cls, run_dir: Path, generation: int) -> Self:
        """Of the core with this number."""
        return cls(lambda: CoreClient(run_dir, generation))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return partial(self._call, value) if callable(value) else value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_rest: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        if self._loop.is_closed():
            return
        self._run(_closed(self._client))
        self._end()

    def ask(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """CoreClient's method."""
        return self._call(partial(method, self._client), *args, **kwargs)

    def _call(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        return self._run(method(*args, **kwargs))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _made(make: Callable[[], CoreClient]) -> CoreClient:
    return make()


async def _closed(client: CoreClient) -> None:
    client.close()


def ask(run_dir: Path, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """One question to the newest core, on a connection of its own. Raises CoreError."""
    with BlockingClient.newest(run_dir) as client:
        return client.ask(method, *args, **kwargs)
