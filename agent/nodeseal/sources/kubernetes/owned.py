"""One object that this agent writes, and nobody else should.

It is written whole, by its version: an object of this kind cannot be replaced without one. What somebody else has done
to it shows as a conflict, and is written over. `managedFields`, which would be a third of it and are read by nobody,
are taken away by each replacement; only those of the creation stay until the next one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from nodeseal.kubernetes.api import Api, RefusedError
from nodeseal.kubernetes.objects import Resource
from nodeseal.sources.kubernetes.mesh_objects import API_VERSION, Owner, OwnMeta, own_key

C = TypeVar("C", bound=Struct)

_TRIES = 4


class _Answer(Struct):
    metadata: OwnMeta


@dataclass(frozen=True, slots=True)
class OwnKind(Generic[C]):
    """`part`: where its content is, "spec" or "status"."""

    resource: Resource[Any]
    kind: str
    part: str
    type: type[C]


class Owned(Generic[C]):
    """All methods raise AwayError, RefusedError, AccessError."""

    def __init__(self, api: Api, kind: OwnKind[C], name: str) -> None:
        self.content: C | None = None
        """What was written into it, as far as this agent knows; None: it is not there."""
        self.stored: C | None = None
        """What the API server has made of that: one whose schema is of another version drops fields that it does not
        know, and writing them again would not help."""
        self._api = api
        self._kind = kind
        self._key = own_key(name)
        self._version = ""
        self._owner: Owner | None = None

    async def look(self) -> C | None:
        """What is in it now. One that cannot be read is as one that is not there, but for its version."""
        found = await self._api.get_raw(self._kind.resource, self._key)
        self.content, self.stored, self._version, self._owner = None, None, "", None
        if found is None:
            return None
        meta = msgspec.json.decode(found, type=_Answer).metadata
        self._version = meta.resource_version
        self._owner = meta.owner_references[0] if len(meta.owner_references) == 1 else None
        self.content = self.stored = self._content(found)
        return self.content

    def is_as(self, content: C, owner: Owner) -> bool:
        """Whether nothing has to be written, as far as this agent knows."""
        return self.content == content and self._owner == owner

    async def put(self, content: C, owner: Owner, mine: Callable[[C | None], Awaitable[None]] | None = None) -> None:
        """It is there, and says this. `mine` is asked before what somebody else has made of it is written over, and
        raises what stops that."""
        for left in reversed(range(_TRIES)):
            try:
                answer = await self._write(content, owner)
            except RefusedError as error:
                if not left or not (error.exists or error.conflict or error.missing):
                    raise
                found = await self.look()
                if mine is not None:
                    await mine(found)
                continue
            self._version = msgspec.json.decode(answer, type=_Answer).metadata.resource_version
            self.content, self.stored, self._owner = content, self._content(answer), owner
            return

    async def remove(self) -> bool:
        """It is not there. False: it was not."""
        was = await self._api.delete(self._kind.resource, self._key)
        self.content, self.stored, self._version, self._owner = None, None, "", None
        return was

    def _content(self, found: bytes) -> C | None:
        try:
            parts = msgspec.json.decode(found, type=dict[str, msgspec.Raw])
            return msgspec.json.decode(parts.get(self._kind.part, b"null"), type=self._kind.type)
        except msgspec.DecodeError:
            return None

    async def _write(self, content: C, owner: Owner) -> bytes:
        metadata: dict[str, Any] = {"name": self._key[1], "ownerReferences": [owner]}
        body = {"apiVersion": API_VERSION, "kind": self._kind.kind, "metadata": metadata, self._kind.part: content}
        if not self._version:
            return await self._api.create(self._kind.resource, "", body)
        metadata |= {"resourceVersion": self._version, "managedFields": [{}]}
        return await self._api.replace(self._kind.resource, self._key, body)
