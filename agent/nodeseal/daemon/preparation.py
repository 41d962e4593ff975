"""What an agent does ahead, while another one is still active for its node: whatever could fail or takes long."""

from __future__ import annotations

import asyncio
import logging

from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.bpf.runtime import compile_ahead
from nodeseal.capture.errors import CaptureError
from nodeseal.cores import place
from nodeseal.cores.image import Image
from nodeseal.cores.place import PlaceError
from nodeseal.daemon.composition import issuer_of
from nodeseal.daemon.succession import NotPreparedError
from nodeseal.identity.issuer import IssuerError
from nodeseal.local.config import Config
from nodeseal.sources.source import MeshStateError, Source

log = logging.getLogger("nodeseal.agent")


class Preparation:
    """Of one agent. What it has made stays for as long as the process lives."""

    def __init__(self, config: Config, source: Source) -> None:
        self._config = config
        self._source = source
        self._image: Image | None = None

    async def prepare(self) -> None:
        """The issuer gives trust anchors, the source a mesh state, the BPF programs are compiled, and the files of a
        core are copied. Raises NotPreparedError."""
        await _ask(self._config, self._source)
        await _compile(self._config)
        if self._image is None:
            try:
                self._image = await asyncio.to_thread(place.prepare, self._config.core)
            except PlaceError as error:
                raise NotPreparedError(str(error)) from None


async def _ask(config: Config, source: Source) -> None:
    try:
        # One of its own: the active agent's successor begins with another, for this one may grow old meanwhile.
        issuer = issuer_of(config)
        try:
            await issuer.begin()
        finally:
            await issuer.close()
        await source.load()
    except IssuerError as error:
        raise NotPreparedError(str(error)) from None
    except MeshStateError as error:
        first, *more = str(error).splitlines()
        found = f"{first}{f' (and {len(more)} more)' if more else ''}"
        raise NotPreparedError(f"the mesh state cannot be used: {found}") from None
    except OSError as error:
        raise NotPreparedError(f"{error.filename or 'its files'}: {error.strerror or error}") from None


async def _compile(config: Config) -> None:
    if config.capture is Choice.IPTABLES:
        return
    try:
        await asyncio.to_thread(compile_ahead, config.run_dir)
    except CaptureError as error:
        if config.capture is Choice.EBPF:
            raise NotPreparedError(str(error)) from None
        log.info("the BPF programs were not compiled ahead: %s", error)
