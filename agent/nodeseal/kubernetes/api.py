"""Asking the API server: lists in pages, watches, single objects and their changes, and what an answer that is none
means.

Its own few requests over aiohttp, which the agent has anyway, and not a client library. Those were measured (resident
memory after the import, Python 3.11): kubernetes_asyncio 36.1 takes 38 MB more than aiohttp alone, because all of its
thousand models are imported, and an agent may have 120 MB. lightkube 1.0 and kr8s 0.20 take little, but neither asks
for bookmarks: a watch of few objects would have to list all of them again after every pause.

How it works. https://kubernetes.io/docs/reference/using-api/api-concepts/ is what this follows: a list comes in pages
and has a version at its end; a watch from that version sends one JSON object a line for every change, and now and then
a bookmark, which is a version alone. The server forgets old versions, and says 410 then: list again. Bookmarks come of
what etcd tells the server of its progress: every 5 s where kubeadm set it up, every 10 minutes by etcd's own default
[ran: 1.36 over etcd 3.6; none at all over 3.4]. So a watch may be silent though all is well; it is begun anew then.

What comes is hostile until it is parsed, and bounded: a page, a line, the time between two pieces.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Generic

import aiohttp
import msgspec
from msgspec import Raw, Struct, field

from nodeseal.https import one_line, read_answer, why
from nodeseal.kubernetes.access import Access, AccessError
from nodeseal.kubernetes.objects import Key, Resource, T

PAGE = 500
"""Objects of a page of a list, as kubectl asks for them."""

_PAGE_MAX = 256 << 20
_LINE_MAX = 16 << 20  # etcd takes objects of 1.5 MiB; several times that with escapes
_ERROR_MAX = 64 << 10
_CONNECT_S = 10.0
_ANSWER_S = 60.0
_SILENCE_S = 150.0
"""A watch that sends nothing for so long may have lost its server."""


_TOO_LARGE = "ResourceVersionTooLarge"
_JSON, _MERGE, _APPLY = "application/json", "application/merge-patch+json", "application/apply-patch+yaml"
_METHODS = {
    "list": "GET",
    "watch": "GET",
    "get": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}
"""Of RBAC's verbs. https://kubernetes.io/docs/reference/access-authn-authz/authorization/#determine-the-request-verb"""
_GOOD = {200, 201, 202}

_VERSION_UNUSABLE = {"Expired", "Gone", _TOO_LARGE}
"""https://kubernetes.io/docs/reference/using-api/api-concepts/#unavailable-resource-versions"""


class AwayError(Exception):
    """The API server has not answered, or with something else than an answer. One line."""


class RefusedError(Exception):
    """It has answered that it does not do it. One line."""

    def __init__(self, code: int, reason: str, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.code = code
        """The HTTP status."""
        self.reason = reason
        """Kubernetes' word for it: "Forbidden", "Expired", "NotFound"; of a timeout its cause; may be empty."""
        self.retry_after = retry_after

    @property
    def gone(self) -> bool:
        """The version that was asked from is too old, or not there yet, as after etcd was brought back from a backup:
        list again."""
        return self.code == 410 or self.reason in _VERSION_UNUSABLE

    @property
    def missing(self) -> bool:
        """There is no such object. (A kind that the server does not have is refused with the same status.)"""
        return self.reason == "NotFound" and self.code == 404

    @property
    def exists(self) -> bool:
        """There is one of that name."""
        return self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """Somebody has changed it since it was read."""
        return self.reason == "Conflict"


class ChangeType(Enum):
    """What a watch tells of an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    """Nothing has changed up to this version."""


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One line of a watch. `item`: None of a bookmark, and of an object that cannot be read (`fault` says why)."""

    type: ChangeType
    version: str
    key: Key
    item: T | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """All objects of a kind at a version. `unread`: why some cannot be read, one line each."""

    items: list[T]
    version: str
    unread: Mapping[Key, str]


class _ListMeta(Struct, rename="camel"):
    resource_version: str = ""
    continue_: str | None = field(default=None, name="continue")


class _Page(Struct):
    metadata: _ListMeta
    items: list[Raw] | None = None
    """Go writes null for none."""


class _Line(Struct):
    type: str
    object: Raw


class _Version(Struct, rename="camel"):
    resource_version: str = ""
    name: str = ""
    namespace: str = ""


class _Versioned(Struct):
    metadata: _Version


class _StatusCause(Struct):
    reason: str = ""


class _StatusDetails(Struct, rename="camel"):
    retry_after_seconds: float | None = None
    causes: list[_StatusCause] | None = None


class _Status(Struct):
    """meta/v1 Status."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _StatusDetails | None = None

    @property
    def word(self) -> str:
        """See RefusedError.reason."""
        causes = self.details.causes if self.details is not None else None
        return _TOO_LARGE if any(one.reason == _TOO_LARGE for one in causes or ()) else self.reason


class Api:
    """One API server. All methods belong to the event loop."""

    def __init__(self, access: Access, agent: str) -> None:
        """`agent`: what it calls itself in the server's logs. Raises AccessError."""
        self._access = access
        self._agent = agent
        self._stamp = _stamp(access.ca)
        try:
            self._context = _trusting(access.ca)
        except (OSError, ssl.SSLError) as error:
            raise AccessError(f"the API server's CA {access.ca} cannot be read: {error}") from None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """What is under way fails."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            for _turn in range(3):
                # Of the event loop: what was aborted is closed in these.
                await asyncio.sleep(0)

    async def list_all(self, resource: Resource[T], selectors: Mapping[str, str], page: int = PAGE) -> Listing[T]:
        """All of them. `selectors`: "fieldSelector", "labelSelector". Raises AwayError, RefusedError, AccessError."""
        items: list[T] = []
        unread: dict[Key, str] = {}
        query = {**selectors, "limit": str(page)}
        while True:
            async with self._asked("list", resource, query, _ANSWER_S) as answer:
                found = msgspec.json.decode(await read_answer(answer, _PAGE_MAX), type=_Page)
                for raw in found.items or ():
                    try:
                        items.append(msgspec.json.decode(raw, type=resource.type))
                    except msgspec.ValidationError as error:
                        key = _key(raw)
                        unread[key] = _fault(resource, key, error)
            if not found.metadata.continue_:
                return Listing(items, found.metadata.resource_version, unread)
            query["continue"] = found.metadata.continue_
            await asyncio.sleep(0)

    async def get(self, resource: Resource[T], key: Key) -> T | None:
        """One object; None: there is none. Raises AwayError, RefusedError, AccessError, and ValueError for one that
        cannot be read."""
        body = await self.get_raw(resource, key)
        if body is None:
            return None
        try:
            return msgspec.json.decode(body, type=resource.type)
        except msgspec.DecodeError as error:
            raise ValueError(_fault(resource, key, error)) from None

    async def get_raw(self, resource: Resource[Any], key: Key) -> bytes | None:
        """The same as it comes, JSON. Raises AwayError, RefusedError, AccessError."""
        try:
            return await self._object("get", resource, resource.at(key))
        except RefusedError as error:
            if error.missing:
                return None
            raise

    async def create(self, resource: Resource[Any], namespace: str, value: Any, *, part: str = "") -> bytes:
        """A new object, or with `part` a subresource of a kind that has no object of its own. The answer. Raises
        AwayError, RefusedError (`exists`), AccessError."""
        return await self._object("create", resource, resource.within(namespace) + part, value)

    async def apply(self, resource: Resource[Any], key: Key, value: Any, *, manager: str, part: str = "") -> bytes:
        """Server-side apply: the fields in `value` are this manager's from now on, whoever had them before, and fields
        that it had and are not in it any more go. `part`: "/status" for that subresource. The answer. Raises AwayError,
        RefusedError, AccessError.

        https://kubernetes.io/docs/reference/using-api/server-side-apply/
        """
        query = {"fieldManager": manager, "force": "true"}
        return await self._object("patch", resource, resource.at(key) + part, value, _APPLY, query)

    async def replace(self, resource: Resource[Any], key: Key, value: Any, *, part: str = "") -> bytes:
        """The object is this from now on; with a resourceVersion in it only if nobody changed it since (`conflict`).
        The answer. Raises AwayError, RefusedError, AccessError."""
        return await self._object("update", resource, resource.at(key) + part, value)

    async def merge(self, resource: Resource[Any], key: Key, value: Any, *, part: str = "") -> bytes:
        """JSON merge patch (RFC 7386): null takes a field away. The answer. Raises AwayError, RefusedError,
        AccessError."""
        return await self._object("patch", resource, resource.at(key) + part, value, _MERGE)

    async def delete(self, resource: Resource[Any], key: Key) -> bool:
        """False: there was none. Raises AwayError, RefusedError, AccessError."""
        try:
            await self._object("delete", resource, resource.at(key))
        except RefusedError as error:
            if error.missing:
                return False
            raise
        return True

    async def _object(
        self,
        verb: str,
        resource: Resource[Any],
        path: str,
        value: Any = None,
        content: str = _JSON,
        query: Mapping[str, str] | None = None,
    ) -> bytes:
        body = msgspec.json.encode(value) if value is not None else None
        async with self._asked(verb, resource, query or {}, _ANSWER_S, path=path, body=body, content=content) as answer:
            return await read_answer(answer, _LINE_MAX)

    async def watch(
        self,
        resource: Resource[T],
        version: str,
        selectors: Mapping[str, str],
        seconds: int = 600,
    ) -> AsyncGenerator[list[Change[T]], None]:
        """What changes after `version`, as it comes: what has come at once is one list. The first one is empty: the
        server watches. Ends when the server has had enough, after so many seconds at the latest, or has been silent; go
        on from the last version then. Raises AwayError, RefusedError, AccessError."""
        query = {
            **selectors,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        async with self._asked("watch", resource, query, _SILENCE_S) as answer:
            try:
                yield []
                async for lines in _lines(answer):
                    yield [_change(resource, line) for line in lines]
            except TimeoutError:
                return
            finally:
                _abort(answer)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                self._access.server,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=1 << 20,
            )
        return self._session

    def _known(self) -> ssl.SSLContext:
        """What verifies the server: read anew when its CA is another one. One that cannot be read changes nothing."""
        stamp = _stamp(self._access.ca)
        if stamp != self._stamp:
            with contextlib.suppress(OSError, ssl.SSLError):
                self._context = _trusting(self._access.ca)
                self._stamp = stamp
        return self._context

    @contextlib.asynccontextmanager
    async def _asked(
        self,
        verb: str,
        resource: Resource[Any],
        query: Mapping[str, str],
        silence: float,
        *,
        path: str | None = None,
        body: bytes | None = None,
        content: str = _JSON,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good answer, whose body is not read yet. Raises AwayError, RefusedError, AccessError."""
        headers = {
            "Authorization": f"Bearer {self._access.bearer()}",
            "Accept": _JSON,
            "User-Agent": self._agent,
        }
        if body is not None:
            headers["Content-Type"] = content
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=silence)
        try:
            # A redirect would carry the token elsewhere.
            async with self._opened().request(
                _METHODS[verb],
                path or resource.path,
                params=query,
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                ssl=self._known(),
            ) as answer:
                if answer.status not in _GOOD:
                    raise _refused(verb, resource, answer.status, await read_answer(answer, _ERROR_MAX), answer.headers)
                yield answer
        except TimeoutError:
            text = f"{self._access.server} has been silent for {silence:.0f} s, asked to {verb} {resource.name}"
            raise AwayError(text) from None
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            raise AwayError(f"{self._access.server}: {why(error)}") from None


def _abort(answer: aiohttp.ClientResponse) -> None:
    """Ends a connection whose answer has no end. Ending TLS in order would take the server's consent, and outlive who
    is closed."""
    connection = answer.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


def _trusting(ca: Path) -> ssl.SSLContext:
    """Verifies servers by this CA. Raises OSError, ssl.SSLError."""
    context = ssl.create_default_context(cafile=ca)
    # Python 3.13 asks for what RFC 5280 has CAs write. kubectl does not, and clusters have certificates without it.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _stamp(path: Path) -> tuple[int, int] | None:
    """Another one when the file was replaced; None: it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
    """What has come at once, in whole lines. Raises ValueError for one that has no end."""
    rest = bytearray()
    async for piece in answer.content.iter_any():
        rest += piece
        *lines, rest = rest.split(b"\n") if b"\n" in piece else (rest,)
        if len(rest) > _LINE_MAX:
            raise ValueError(f"a line of the watch has more than {_LINE_MAX >> 20} MiB")
        if found := [bytes(line) for line in lines if line]:
            yield found


def _change(resource: Resource[T], line: bytes) -> Change[T]:
    """Raises ValueError, RefusedError."""
    found = msgspec.json.decode(line, type=_Line)
    if found.type == "ERROR":
        status = msgspec.json.decode(found.object, type=_Status)
        raise RefusedError(status.code, status.word, f"the watch of {resource.name} ended: {one_line(status.message)}")
    kind = ChangeType(found.type)
    of = msgspec.json.decode(found.object, type=_Versioned).metadata
    key = of.namespace, of.name
    if kind is ChangeType.BOOKMARK or kind is ChangeType.DELETED:
        return Change(kind, of.resource_version, key)
    try:
        return Change(kind, of.resource_version, key, msgspec.json.decode(found.object, type=resource.type))
    except msgspec.ValidationError as error:
        return Change(kind, of.resource_version, key, None, _fault(resource, key, error))


def _key(raw: Raw) -> Key:
    """Raises ValueError for what is no object at all."""
    of = msgspec.json.decode(raw, type=_Versioned).metadata
    return of.namespace, of.name


def _fault(resource: Resource[Any], key: Key, error: Exception) -> str:
    return one_line(f"{resource.name} {'/'.join(filter(None, key))} cannot be read: {error}")


def _refused(verb: str, resource: Resource[Any], status: int, body: bytes, headers: Mapping[str, str]) -> RefusedError:
    try:
        said = msgspec.json.decode(body, type=_Status)
    except msgspec.DecodeError:
        said = _Status()
    after = said.details.retry_after_seconds if said.details is not None else None
    if after is None and headers.get("Retry-After", "").isdigit():
        after = float(headers["Retry-After"])
    detail = one_line(said.message)
    if status == 403 and (not detail or " cannot " in detail):  # and no admission policy, which says why itself
        text = f"the agent may not {verb} {resource.name}: give its service account the verb {verb} on {resource.name}"
    elif status == 401:
        text = "the API server does not take the agent's token"
    elif status == 404 and said.reason == "NotFound":
        text = f"the API server has nothing to {verb} there among {resource.name}"
    elif status == 404:
        text = (
            f"the API server has no {resource.name} of version {resource.version}: install or upgrade nodeseal's CRDs"
        )
    else:
        text = f"the API server does not {verb} {resource.name}: status {status}"
    return RefusedError(status, said.word, f"{text} ({detail})" if detail else text, after)
