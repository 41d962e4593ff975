"""The agent's end of cni.sock, asked by the plugin itself and by strangers; and the pods that were let through."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nodeseal.cni import server as server_module
from nodeseal.cni.enrolled_namespaces import EnrolledNamespaces
from nodeseal.cni.let_through import LetThroughPods
from nodeseal.cni.server import PluginServer, arrival_of
from nodeseal.contracts.pod_start import (
    ANSWER_HEAD,
    MAGIC,
    QUESTION_HEAD,
    MessageError,
    NetworkConfiguration,
    Question,
    Reply,
    Result,
    read,
)
from nodeseal.contracts.pod_start import Ip as IpRow
from nodeseal.mesh.model import WorkloadName
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.node.arrivals import Answer, Outcome, Refused
from nodeseal.sources.arrival import Arrival
from support.agent_fakes import until
from support.cni_plugin import RESULT, Called, configuration, ended, environment, plugin, start


class FakeArrivals:
    """Answers all with `outcome` once `open` is set."""

    def __init__(self) -> None:
        self.outcome: Outcome = Answer.ENROLLED
        self.arrived: list[Arrival] = []
        self.departed: list[Arrival] = []
        self.seconds = 0.0
        self.lacking: str | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def arrive(self, arrival: Arrival, seconds: float) -> Outcome:
        self.arrived.append(arrival)
        self.seconds = seconds
        await self.open.wait()
        return self.outcome

    async def depart(self, arrival: Arrival) -> None:
        self.departed.append(arrival)

    def why_not_enrolled(self, _arrival: Arrival) -> str | None:
        return self.lacking


class Place:
    """A server on a socket in a run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / "cni.sock"
        self.arrivals = FakeArrivals()
        self.enrolled: set[str] = set()
        self.let_through = LetThroughPods(run_dir, lambda netns: netns in self.enrolled)
        self.known: frozenset[str] | None = None
        self.namespaces = EnrolledNamespaces(run_dir, lambda: self.known)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = PluginServer(self.path, self.arrivals, self.let_through, self.namespaces)  # type: ignore[arg-type]
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    async def call(self, command: str, variables: dict[str, str] | None = None, **changes: Any) -> Called:
        given = json.dumps(configuration(self.path, **changes)).encode()
        program = await asyncio.to_thread(plugin)
        called = await asyncio.to_thread(start, program, environment(command, **(variables or {})), given)
        return await asyncio.to_thread(ended, called)

    async def ask(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
            writer.close()
            return answer
        return b""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def play(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await story

    asyncio.run(bounded())


def framed(body: bytes, patience_ms: int = 1000) -> bytes:
    return QUESTION_HEAD.pack(MAGIC, len(body), patience_ms) + body


def test_pod_starts_when_it_is_enrolled_or_not_wanted(place: Place) -> None:
    async def story() -> None:
        async with place.serving():
            for outcome in Answer:
                place.arrivals.outcome = outcome
                called = await place.call("ADD")
                assert (called.status, json.loads(called.output)) == (0, RESULT)
        assert place.arrivals.arrived[0] == Arrival(
            WorkloadName("default", "web-1"),
            "uid-1",
            "sandbox-1",
            "/var/run/netns/cni-1",
            (ip_address("10.1.0.7"), ip_address("fd00::7")),
        )
        assert 80 < place.arrivals.seconds < 90

    play(story())


def test_refused_pod_does_not_start_and_says_why(place: Place) -> None:
    async def story() -> None:
        place.arrivals.outcome = Refused('no room for "it"')
        async with place.serving():
            error = (await place.call("ADD")).error
        assert error["code"] == 11
        assert error["cniVersion"] == "1.0.0"
        assert error["msg"] == "nodeseal cannot enrol the pod default/web-1, so it does not start"
        assert error["details"] == 'no room for "it"'

    play(story())


@pytest.mark.parametrize("changes", [{"on_failure": "open"}, {"open_namespaces": ["default"]}])
def test_refused_pod_starts_where_that_is_open_and_is_told(changes: dict[str, Any], place: Place) -> None:
    async def story() -> None:
        place.arrivals.outcome = Refused("no room")
        netns = place.run_dir / "netns"
        netns.touch()
        async with place.serving():
            assert (await place.call("ADD", {"CNI_NETNS": str(netns)}, **changes)).status == 0
            (problem,) = place.let_through.problems()
            assert problem.word is ProblemWord.POD_LET_THROUGH
            assert problem.text == "pods started without being enrolled: default/web-1"
            await place.let_through.look()
            assert list(place.let_through.problems()) == [problem]
            place.arrivals.outcome = Answer.ENROLLED
            assert (await place.call("ADD", {"CNI_NETNS": str(netns)}, **changes)).status == 0
            assert not list(place.let_through.problems())
            assert not list((place.run_dir / "let-through").iterdir())

    play(story())


def test_refused_pod_of_a_namespace_that_is_enrolled_does_not_start_by_namespace(place: Place) -> None:
    async def status(known: frozenset[str] | None) -> int:
        place.known = known
        return (await place.call("ADD", on_failure="by-namespace")).status

    async def story() -> None:
        place.arrivals.outcome = Refused("no room")
        async with place.serving():
            assert await status(None) == 1, "nothing is known"
            assert await status(frozenset({"default", "shop"})) == 1
            assert await status(frozenset({"shop"})) == 0
            place.namespaces.keep()
            # As an agent that knows nothing yet has it of the one before.
            place.namespaces = EnrolledNamespaces(place.run_dir, lambda: None)
            assert place.namespaces.lack("default")
            assert not place.namespaces.lack("shop")

    play(story())


def test_plugin_goes_by_the_namespaces_that_the_agent_knew_last(place: Place) -> None:
    async def status() -> int:
        return (await place.call("ADD", on_failure="by-namespace", timeout_seconds=1)).status

    async def story() -> None:
        assert await status() == 1, "no agent has run yet"
        for known, expected in (({"shop"}, 0), ({"shop", "default", "x"}, 1), ({"default"}, 1), ({"default2"}, 0)):
            place.known = frozenset(known)
            place.namespaces.keep()
            assert await status() == expected, known
        place.known = frozenset()
        place.namespaces.keep()
        assert await status() == 0
        path = place.run_dir / "enrolled-namespaces"
        path.unlink()
        path.mkdir()
        assert await status() == 1, "it cannot be read"

    play(story())


def test_an_agent_that_comes_tells_of_pods_that_did_not_wait_for_it(place: Place) -> None:
    async def story() -> None:
        for number in range(8):
            netns = place.run_dir / f"netns-{number}"
            netns.touch()
            args = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-{number}"
            variables = {"CNI_CONTAINERID": f"s{number}", "CNI_NETNS": str(netns), "CNI_ARGS": args}
            assert (await place.call("ADD", variables, on_failure="open", timeout_seconds=1)).status == 0
        folder = place.run_dir / "let-through"
        (folder / "rubbish").write_bytes(b"{")
        await place.let_through.look()
        (problem,) = place.let_through.problems()
        assert problem.text.endswith(
            "default/web-0, default/web-1, default/web-2, default/web-3, default/web-4 and 3 more"
        )
        assert len(list(folder.iterdir())) == 8
        place.enrolled = {str(place.run_dir / f"netns-{number}") for number in range(6)}
        (place.run_dir / "netns-6").unlink()
        await place.let_through.look()
        (problem,) = place.let_through.problems()
        assert problem.text.endswith("enrolled: default/web-7")
        assert [path.name for path in folder.iterdir()] == ["s7"]

    play(story())


def test_a_start_that_waits_goes_over_to_the_next_agent(place: Place) -> None:
    """As when an agent is upgraded: nothing is refused."""

    async def story() -> None:
        place.arrivals.open.clear()
        waiting = asyncio.create_task(place.call("ADD"))
        async with place.serving():
            await until(lambda: place.arrivals.arrived, "asked")
        assert not place.path.exists()
        place.arrivals.open.set()
        async with place.serving():
            assert (await waiting).status == 0
        assert len(place.arrivals.arrived) == 2

    play(story())


def test_departure(place: Place) -> None:
    async def story() -> None:
        async with place.serving():
            assert await place.call("DEL", {"CNI_NETNS": ""}) == Called(0, b"", "")
            assert (await place.call("DEL", {"CNI_ARGS": ""}, prevResult=None)).status == 0
        assert [(one.sandbox, one.netns) for one in place.arrivals.departed] == [
            ("sandbox-1", ""),
            ("sandbox-1", "/var/run/netns/cni-1"),
        ]

    play(story())


def test_check_says_what_is_lacking(place: Place) -> None:
    async def story() -> None:
        async with place.serving():
            assert (await place.call("CHECK")).status == 0
            place.arrivals.lacking = "its certificate has not come"
            assert (await place.call("CHECK")).error["details"] == "its certificate has not come"
            assert (await place.call("GC", **{"cni.dev/valid-attachments": [{"containerID": "a"}]})).status == 0

    play(story())


@pytest.mark.parametrize(
    "question",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        QUESTION_HEAD.pack(MAGIC, 0, 1),
        QUESTION_HEAD.pack(MAGIC, 1 << 31, 1),
        QUESTION_HEAD.pack(b"NSC2", 2, 1) + b"{}",
    ],
)
def test_strangers_get_no_answer(question: bytes, place: Place) -> None:
    async def story() -> None:
        async with place.serving():
            assert await place.ask(question) == b""
            assert (await place.call("ADD")).status == 0

    play(story())


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"\xff\xfe",
        b'{"command":"ADD","config":' + b"[" * 5000,
        b'{"command":"ADD","config":{"on_failure":"maybe"}}',
        b'{"command":"ADD","config":{},"args":"K8S_POD_NAME=a;K8S_POD_NAMESPACE=b","container_id":"c","netns":"rel"}',
        b'{"command":"ADD","config":{},"container_id":"c","netns":"/n"}',
        b'{"command":"DEL","config":{"prevResult":{"ips":[{"address":"fe80::1%eth0/999"}]}}}',
    ],
)
def test_questions_that_cannot_be_read_are_answered_so(body: bytes, place: Place) -> None:
    async def story() -> None:
        async with place.serving():
            answer = await place.ask(framed(body))
        reply = read_reply(answer)
        assert reply["code"] == 6
        assert reply["details"]

    play(story())


def read_reply(answer: bytes) -> dict[str, Any]:
    magic, size = ANSWER_HEAD.unpack(answer[: ANSWER_HEAD.size])
    assert magic == MAGIC
    body = answer[ANSWER_HEAD.size :]
    assert len(body) == size
    values: dict[str, Any] = json.loads(body)
    return values


def test_one_who_asks_slowly_is_left_after_a_while(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_READ_S", 0.05)

    async def story() -> None:
        async with place.serving():
            assert await place.ask(MAGIC) == b""

    play(story())


def test_one_too_many_asks_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CLIENTS_MAX", 2)

    async def story() -> None:
        place.arrivals.open.clear()
        async with place.serving():
            waiting = [asyncio.create_task(place.call("ADD")) for _ in range(4)]
            await until(lambda: len(place.arrivals.arrived) == 2, "two are served")
            place.arrivals.open.set()
            assert [one.status for one in await asyncio.gather(*waiting)] == [0] * 4

    play(story())


def test_socket_is_for_root_alone(place: Place) -> None:
    async def story() -> None:
        async with place.serving():
            assert place.path.stat().st_mode & 0o777 == 0o600

    play(story())


def test_messages_have_room_for_what_is_new() -> None:
    question = read(
        b'{"command":"ADD","config":{"new":1,"prevResult":{"ips":[{"address":"10.0.0.1/8","x":1}]}}}', Question
    )
    assert question.config.result == Result((IpRow("10.0.0.1/8"),))
    assert question.argument("K8S_POD_NAME") == ""
    assert Reply("1.0.0").code == 0
    with pytest.raises(MessageError):
        arrival_of(Question("ADD", NetworkConfiguration()))
