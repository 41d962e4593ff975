"""An API server that answers otherwise than one should: each answer ends in one line, and costs no more than its
bound."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeseal.kubernetes import api as api_module
from nodeseal.kubernetes.access import Access
from nodeseal.kubernetes.api import Api, AwayError, Change, ChangeType, Listing, RefusedError
from nodeseal.kubernetes.objects import PODS, Pod
from support.bundle_server import Behaviour, BundleServer, answering, spare_certificate, web_certificate


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundleServer]:
    server = BundleServer(web_certificate(tmp_path, "127.0.0.1"), answering(b"{}"))
    yield server
    server.close()


def play(server: BundleServer, tmp_path: Path, story: Callable[[Api], Awaitable[None]]) -> None:
    (tmp_path / "token").write_text("secret")

    async def whole() -> None:
        access = Access(server.url.removesuffix("/bundle.json"), tmp_path / "web.pem", tmp_path / "token")
        api = Api(access, "nodeseal-test")
        try:
            async with asyncio.timeout(20):
                await story(api)
        finally:
            await api.close()
            await asyncio.sleep(0.05)  # the loop lets go of the connection before it ends itself

    asyncio.run(whole())


def pod(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop", "resourceVersion": "7"}, **more}


def listed(server: BundleServer, tmp_path: Path, error: type[Exception]) -> str:
    """What listing says of the answer."""
    told = []

    async def story(api: Api) -> None:
        with pytest.raises(error) as raised:
            await api.list_all(PODS, {})
        told.append(str(raised.value))

    play(server, tmp_path, story)
    assert "\n" not in told[0]
    return told[0]


def watched(server: BundleServer, tmp_path: Path, *lines: object) -> list[Change[Pod]]:
    """What a watch makes of these lines. Raises what it raises."""
    text = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    server.behaviour = answering(text)
    changes: list[Change[Pod]] = []

    async def story(api: Api) -> None:
        async for some in api.watch(PODS, "1", {}):
            changes.extend(some)

    play(server, tmp_path, story)
    return changes


STATUS = json.dumps(
    {"kind": "Status", "reason": "TooMany", "message": "later\nplease", "details": {"retryAfterSeconds": 9}}
)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (answering(b"{}"), AwayError, "missing required field `metadata`"),
        (answering(b"<html>"), AwayError, "malformed"),
        (answering(b"[" * 100_000), AwayError, ""),
        (answering(b"", "302 Found", "Location: https://elsewhere/"), RefusedError, "status 302"),
        (answering(b"", "500 Oh"), RefusedError, "the API server does not list pods: status 500"),
        (answering(b"\xff" * 100, "403 No"), RefusedError, "give its service account the verb list on pods"),
        (answering(b"x" * 100_000, "503 No"), AwayError, "more than 65536 bytes"),
        (answering(STATUS.encode(), "429 Slow"), RefusedError, "does not list pods: status 429 (later please)"),
        (answering(b'{"metadata": {}, "items": [{"spec": 1}]}'), AwayError, "metadata"),
        (lambda connection: connection.close(), AwayError, ""),
    ],
)
def test_list_that_is_none_is_one_line(
    server: BundleServer, tmp_path: Path, answer: Behaviour, error: type[Exception], text: str
) -> None:
    server.behaviour = answer
    assert text in listed(server, tmp_path, error)


def test_server_is_verified_as_kubectl_does(
    server: BundleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.13 refuses certificates without an authority key identifier; API servers of real clusters have such."""
    ordinary = ssl.create_default_context

    def of_a_later_python(**options: Any) -> ssl.SSLContext:
        context = ordinary(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    certificate, ca = spare_certificate(tmp_path, "127.0.0.1")
    server.show(certificate)
    (tmp_path / "web.pem").write_bytes(ca.read_bytes())
    monkeypatch.setattr(ssl, "create_default_context", of_a_later_python)
    server.behaviour = answering(b'{"metadata": {"resourceVersion": "1"}, "items": []}')
    found = []

    async def story(api: Api) -> None:
        found.append(await api.list_all(PODS, {}))

    play(server, tmp_path, story)
    assert [(one.version, one.items) for one in found] == [("1", [])]


def test_page_that_has_no_end_is_given_up(
    server: BundleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "_PAGE_MAX", 1 << 16)
    server.behaviour = answering(b" " * (1 << 20))
    assert "more than 65536 bytes" in listed(server, tmp_path, AwayError)


def test_silent_server_is_given_up(server: BundleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "_ANSWER_S", 0.2)
    server.behaviour = lambda connection: (connection.recv(1), None)[1]
    assert "has been silent for 0 s, asked to list pods" in listed(server, tmp_path, AwayError)


def test_silent_watch_ends_without_a_word(
    server: BundleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "_SILENCE_S", 0.2)
    line = json.dumps({"type": "ADDED", "object": pod("a")}).encode() + b"\n"

    def say_one_thing(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + line)
        connection.recv(1)

    server.behaviour = say_one_thing

    async def story(api: Api) -> None:
        changes = [change async for some in api.watch(PODS, "1", {}) for change in some]
        assert [change.key for change in changes] == [("shop", "a")]

    play(server, tmp_path, story)


def test_server_that_is_known_by_nobody_gets_no_token(server: BundleServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    server.show(web_certificate(tmp_path / "other", "127.0.0.1"))
    assert "certificate" in listed(server, tmp_path, AwayError)
    assert server.requests == []


def test_object_that_cannot_be_read_is_named_and_the_others_count(server: BundleServer, tmp_path: Path) -> None:
    items = [pod("a"), pod("b", spec={"hostNetwork": "yes"}), pod("c", more=1)]
    server.behaviour = answering(json.dumps({"metadata": {"resourceVersion": "9"}, "items": items}).encode())

    async def story(api: Api) -> None:
        listing = await api.list_all(PODS, {})
        assert [item.metadata.name for item in listing.items] == ["a", "c"]
        assert listing.version == "9"
        ((key, why),) = listing.unread.items()
        assert key == ("shop", "b")
        assert why.startswith("pods shop/b cannot be read: Expected `bool`, got `str`")

    play(server, tmp_path, story)


def test_list_of_none_may_be_null(server: BundleServer, tmp_path: Path) -> None:
    server.behaviour = answering(b'{"metadata": {"resourceVersion": "9"}, "items": null}')

    async def story(api: Api) -> None:
        assert await api.list_all(PODS, {}) == Listing([], "9", {})

    play(server, tmp_path, story)


def test_line_that_is_empty_is_passed_over(server: BundleServer, tmp_path: Path) -> None:
    server.behaviour = answering(b"\n")

    async def story(api: Api) -> None:
        assert [some async for some in api.watch(PODS, "1", {})] == [[]]

    play(server, tmp_path, story)


def test_version_that_is_not_there_yet_is_gone(server: BundleServer, tmp_path: Path) -> None:
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    status = {"reason": "Timeout", "details": {"causes": causes, "retryAfterSeconds": 1}}
    server.behaviour = answering(json.dumps(status).encode(), "504 Gateway Timeout")

    async def story(api: Api) -> None:
        with pytest.raises(RefusedError) as raised:
            await api.list_all(PODS, {})
        assert raised.value.gone

    play(server, tmp_path, story)


def test_ca_of_the_server_may_be_replaced(server: BundleServer, tmp_path: Path) -> None:
    good = json.dumps({"metadata": {"resourceVersion": "9"}}).encode()

    async def story(api: Api) -> None:
        server.behaviour = answering(good)
        await api.list_all(PODS, {})
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "web.pem").write_bytes(web_certificate(tmp_path / "new", "127.0.0.1").read_bytes())
        server.show(tmp_path / "new" / "web.pem")
        (tmp_path / "new" / "web.pem").replace(tmp_path / "web.pem")
        await api.list_all(PODS, {})

    play(server, tmp_path, story)


def test_object_that_is_too_deep_is_one_line(server: BundleServer, tmp_path: Path) -> None:
    deep = b'{"a":' * 5_000 + b"1" + b"}" * 5_000
    server.behaviour = answering(b'{"metadata": {}, "items": [' + deep + b"]}")
    assert "recursion" in listed(server, tmp_path, AwayError)


def test_lines_of_a_watch_are_put_together(server: BundleServer, tmp_path: Path) -> None:
    changes = watched(
        server,
        tmp_path,
        {"type": "ADDED", "object": pod("a")},
        {"type": "MODIFIED", "object": pod("b", spec={"hostNetwork": 1})},
        b"\n",
        {"type": "DELETED", "object": pod("a")},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "12"}}},
        b'{"type": "ADDED", "object"',
    )
    assert [(change.type, change.key[1], change.version) for change in changes] == [
        (ChangeType.ADDED, "a", "7"),
        (ChangeType.MODIFIED, "b", "7"),
        (ChangeType.DELETED, "a", "7"),
        (ChangeType.BOOKMARK, "", "12"),
    ]
    assert changes[1].item is None
    assert changes[1].fault is not None


@pytest.mark.parametrize(
    ("line", "error", "text"),
    [
        (b"no JSON\n", AwayError, "malformed"),
        ({"type": "RENAMED", "object": pod("a")}, AwayError, "RENAMED"),
        ({"type": "ADDED", "object": 5}, AwayError, "Expected `object`"),
        (b" " * (1 << 17), AwayError, "a line of the watch has more than"),
        ({"type": "ERROR", "object": {"code": 410, "message": "too old"}}, RefusedError, "too old"),
    ],
)
def test_watch_that_sends_something_else_ends(
    server: BundleServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: object,
    error: type[Exception],
    text: str,
) -> None:
    monkeypatch.setattr(api_module, "_LINE_MAX", 1 << 16)
    with pytest.raises(error, match=text) as raised:
        watched(server, tmp_path, line)
    assert isinstance(raised.value, AwayError) or raised.value.gone  # type: ignore[attr-defined]
