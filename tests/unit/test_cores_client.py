"""The agent's client of a core: cores of the version before, that hang, that lie, and requests that are given up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from nodeseal.contracts import core as contract
from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.identity.key import PrivateKey
from nodeseal.linux import control_socket
from nodeseal.local import generations
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Mesh, Mode, Workload, WorkloadName
from nodeseal.mesh.spiffe import SpiffeId

RECORDED = Path(__file__).parent / "recorded" / "core-protocol-4.jsonl"
NAME = WorkloadName("default", "shipper")
IDENTITY = SpiffeId("example.org", "default", "shipper")
PATIENCE = 10.0

Reply = tuple[bytes, list[int]] | None
"""A body and descriptors, which are closed once they are sent; None: no answer."""


class Core:
    """Serves generation 1's control socket in a thread; `reply` says what each request is answered with."""

    def __init__(self, run_dir: Path, reply: Callable[[dict[str, Any], list[int]], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.descriptors: list[int] = []
        """How many came with each."""
        self.go_on = threading.Event()
        """Set: requests without an answer are let go."""
        self._reply = reply
        self._listener = control_socket.listen(str(generations.socket_path(run_dir, 1)))
        self._peers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def end(self) -> None:
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _address = self._listener.accept()
                self._peers.append(peer)
                self._threads.append(threading.Thread(target=self._serve, args=(peer,), daemon=True))
                self._threads[-1].start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(control_socket.ControlError):
            while True:
                body, fds = control_socket.receive(peer)
                request = json.loads(body)
                self.requests.append(request)
                self.descriptors.append(len(fds))
                reply = self._reply(request, fds)
                control_socket.close_all(fds)
                if reply is None:
                    continue
                answer, sent = reply
                try:
                    with control_socket.packed(answer, sent) as message:
                        control_socket.send(peer, message)
                finally:
                    control_socket.close_all(sent)


@pytest.fixture
def make_core(tmp_path: Path) -> Iterator[Callable[[Callable[..., Reply]], Core]]:
    cores: list[Core] = []

    def make(reply: Callable[..., Reply]) -> Core:
        cores.append(Core(tmp_path, reply))
        return cores[-1]

    yield make
    for core in cores:
        core.end()


MakeCore = Callable[[Callable[..., Reply]], Core]


@contextlib.contextmanager
def client_of(run_dir: Path, **options: Any) -> Iterator[CoreClient]:
    client = CoreClient(run_dir, 1, **options)
    try:
        yield client
    finally:
        client.close()


class Traced:
    """Descriptors of which it can be told whether all copies are closed."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def copy(self) -> int:
        return os.dup(self._writing)

    async def all_closed(self) -> bool:
        os.close(self._writing)
        with os.fdopen(self._reading, "rb") as reading:
            return await asyncio.to_thread(reading.read) == b""


@pytest.fixture
def traced() -> Traced:
    return Traced()


def play(story: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story

    asyncio.run(bounded())


def say(**answer: Any) -> bytes:
    return json.dumps({"ok": True, **answer}).encode()


def null() -> int:
    return os.open("/dev/null", os.O_RDONLY)


HELLO = say(pid=1, version="9", build="b", protocol=5, generation=1, trust_domain="example.org", workloads=[])


def as_recorded(request: dict[str, Any], fds: list[int]) -> Reply:
    """What a core of protocol 4 answered to such a request. It takes all that it was asked with for granted."""
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        exchange = json.loads(line)
        asked = exchange["request"]
        same = all(request.get(key) == asked[key] for key in ("op", "first") if key in asked)
        if not same or not exchange["answer"]["ok"]:
            continue
        if asked["op"] == "mesh" and ("full" in asked) != ("full" in request):
            continue
        assert set(asked) <= set(request)
        assert exchange["request_descriptors"] in (len(fds), 4)
        return json.dumps(exchange["answer"]).encode(), [null() for _ in range(exchange["answer_descriptors"])]
    raise AssertionError(f"no core of protocol 4 was asked {request}")


def test_core_of_the_version_before_is_asked_what_it_knows(make_core: MakeCore, tmp_path: Path) -> None:
    core, key = make_core(as_recorded), PrivateKey.generate()
    before = mesh(3)

    async def story() -> None:
        with client_of(tmp_path) as client:
            hello = await client.hello()
            assert (hello.protocol, hello.trust_domain, hello.retired) == (4, "example.org", False)
            await client.workload_add(5, NAME, IDENTITY, (IPv4Address("10.0.0.1"), IPv6Address("fd00::1")), netns_fd=0)
            await client.workload_limits(5, Limits(1, 2, 3))
            await client.workload_credentials(5, IDENTITY, chain_pem="chain", private_key=key, bundle_pem="bundle")
            await client.workload_listen(5, {0: 0, 1: 0, 2: 0, 3: 0})
            given = await client.listeners(5)
            assert list(given) == [0, 1, 2, 3]
            control_socket.close_all(given.values())
            await client.mesh(before, 1)
            assert await client.mesh_change(before, mesh(4), 2, base=1)
            known = await client.mesh_read()
            assert known is not None
            assert WorkloadName("default", "pipeline") in known.workloads
            assert await client.connections(contract.Connections()) == ([], None)
            assert await client.refusals() == []
            counters, rows = await client.stats()
            assert counters.workers == 1
            assert "default/shipper" in [row.workload for row in rows]
            assert await client.live() == (0, 0)
            await client.workload_unlisten(5, 1, 2, 3)
            await client.workload_remove(5)
            await client.retire(None)
            await client.stop()

    play(story())
    assert core.requests[3]["bundle_pem"] == "bundle"
    assert core.requests[3]["key_pem"] == key.pem()


def test_core_without_limits_is_given_none(make_core: MakeCore, tmp_path: Path) -> None:
    def reply(request: dict[str, Any], _fds: list[int]) -> Reply:
        assert request["op"] == "hello"
        return HELLO.replace(b'"protocol": 5', b'"protocol": 3'), []

    core = make_core(reply)

    async def story() -> None:
        with client_of(tmp_path) as client:
            assert (await client.hello()).protocol == 3
            await client.workload_limits(1, Limits())

    play(story())
    assert len(core.requests) == 1


def mesh(count: int) -> Mesh:
    return Mesh.build(
        "example.org",
        [
            Workload(WorkloadName("default", f"w{n}"), "w", "n", (IPv4Address(n + 1),), None, True, Mode.STRICT)
            for n in range(count)
        ],
    )


def silent(_request: dict[str, Any], _fds: list[int]) -> Reply:
    return None


def test_core_that_hangs_costs_those_who_ask_it_and_nobody_else(make_core: MakeCore, tmp_path: Path) -> None:
    make_core(silent)
    threads = threading.active_count()

    async def story() -> None:
        with client_of(tmp_path, timeout=0.3) as client:
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0.01)
                    turns += 1

            running = asyncio.create_task(others())
            with pytest.raises(CoreError, match="does not answer"):
                await client.hello()
            running.cancel()
            client.close()
            assert turns > 5

    play(story())
    # One more serves the connection. The client needs none.
    assert threading.active_count() <= threads + 1


def test_nothing_waits_behind_those_who_list_connections(make_core: MakeCore, tmp_path: Path) -> None:
    """Tens of thousands take a core long, and many may ask for them at once."""

    def reply(request: dict[str, Any], _fds: list[int]) -> Reply:
        return None if request["op"] in ("connections", "refusals") else (say(connections=1), [])

    make_core(reply)

    async def story() -> None:
        with client_of(tmp_path) as client:
            listing = [asyncio.create_task(connections(client)) for _ in range(3)]
            await asyncio.sleep(0.05)
            async with asyncio.timeout(5):
                assert await client.live() == (1, 0)
            client.close()
            assert [type(error) for error in await asyncio.gather(*listing, return_exceptions=True)] == [CoreGone] * 3

    play(story())


def test_request_that_was_given_up_is_not_answered_by_the_next_answer(make_core: MakeCore, tmp_path: Path) -> None:
    late = threading.Event()

    def reply(request: dict[str, Any], _fds: list[int]) -> Reply:
        if request["op"] == "live" and not late.is_set():
            late.wait(PATIENCE)
            return say(connections=1, tunnels=1), []
        return say(connections=2, tunnels=2) if request["op"] == "live" else say(core={"epoch": 7}), []

    make_core(reply)

    async def story() -> None:
        with client_of(tmp_path) as client:
            asked = asyncio.create_task(client.live())
            await asyncio.sleep(0.05)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            late.set()
            assert await client.live() == (2, 2)
            assert (await client.stats())[0].epoch == 7

    play(story())


def test_whoever_gives_up_before_its_turn_costs_the_others_nothing(make_core: MakeCore, tmp_path: Path) -> None:
    going = threading.Event()

    def reply(_request: dict[str, Any], _fds: list[int]) -> Reply:
        going.wait(PATIENCE)
        return say(connections=1, tunnels=1), []

    core = make_core(reply)

    async def story() -> None:
        with client_of(tmp_path) as client:
            first = asyncio.create_task(client.live())
            await asyncio.sleep(0.05)
            second, third = asyncio.create_task(client.live()), asyncio.create_task(client.live())
            await asyncio.sleep(0)
            second.cancel()
            going.set()
            assert await first == await third == (1, 1)

    play(story())
    assert len(core.requests) == 2


def test_many_askers_get_their_own_answers(make_core: MakeCore, tmp_path: Path) -> None:
    def reply(request: dict[str, Any], _fds: list[int]) -> Reply:
        return say(roles=[request["key"]]), [null()]

    make_core(reply)

    async def story() -> None:
        with client_of(tmp_path) as client:

            async def ask(key: int) -> int:
                ((role, fd),) = (await client.listeners(key)).items()
                os.close(fd)
                return role

            assert await asyncio.gather(*map(ask, range(50))) == list(range(50))

    play(story())


def test_descriptors_of_an_answer_that_nobody_waits_for_are_not_kept(
    make_core: MakeCore, tmp_path: Path, traced: Traced
) -> None:
    answered = threading.Semaphore(0)

    def reply(_request: dict[str, Any], _fds: list[int]) -> Reply:
        answered.release()
        return say(roles=[0, 1]), [traced.copy(), traced.copy()]

    core = make_core(reply)

    async def story() -> None:
        with client_of(tmp_path) as client:
            for _ in range(50):
                asked = asyncio.create_task(client.listeners(1))
                # The answer is there, or about to be, when it is given up.
                while not answered.acquire(blocking=False):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                asked.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    control_socket.close_all((await asked).values())
            assert await traced.all_closed()

    play(story())
    assert len(core.requests) == 50


HOSTILE = {
    "no JSON": b"\x00\xff",
    "another type": b"[1,2]",
    "fields of other types": say(connections="many", tunnels={}),
    "a refusal that is no text": b'{"ok":false,"error":{"a":1}}',
    "deep": b"[" * 100_000,
    "deep in what is passed over": b'{"ok":true,"new":' + b"[" * 100_000,
    "a number too many": b'{"ok":true,"connections":-1}',
    "a number too large": b'{"ok":true,"connections":1' + b"0" * 400 + b"}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_answer_that_is_none_is_an_error_and_the_next_one_counts(
    make_core: MakeCore, tmp_path: Path, traced: Traced, name: str
) -> None:
    bodies = [HOSTILE[name], say(connections=1)]
    make_core(lambda _request, _fds: (bodies.pop(0), [traced.copy(), traced.copy()]))

    async def story() -> None:
        with client_of(tmp_path) as client:
            with pytest.raises(CoreError) as caught:
                await client.live()
            assert "\n" not in str(caught.value)
            assert await client.live() == (1, 0)
            # Nor is what nobody asked for kept.
            assert await traced.all_closed()

    play(story())


@pytest.mark.parametrize("roles", [[0], [0, 0], [0, 1, 2]])
def test_listeners_that_do_not_fit_their_roles_are_closed(
    make_core: MakeCore, tmp_path: Path, traced: Traced, roles: list[int]
) -> None:
    make_core(lambda _request, _fds: (say(roles=roles), [traced.copy(), traced.copy()]))

    async def story() -> None:
        with client_of(tmp_path) as client:
            with pytest.raises(CoreError, match="2 descriptors for the roles"):
                await client.listeners(1)
            assert await traced.all_closed()

    play(story())


Ask = Callable[[CoreClient], Awaitable[Any]]


async def connections(client: CoreClient) -> None:
    first: int | None = 0
    while first is not None:
        _rows, first = await client.connections(contract.Connections(first=first))


@pytest.mark.parametrize("ask", [connections, CoreClient.mesh_read], ids=["connections", "mesh state"])
def test_core_that_gives_the_same_part_for_ever_is_left(make_core: MakeCore, tmp_path: Path, ask: Ask) -> None:
    core = make_core(lambda _request, _fds: (say(connections=[], part={"trust_domain": "example.org"}, next=5), []))

    async def story() -> None:
        with client_of(tmp_path) as client, pytest.raises(CoreError, match="again and again"):
            await ask(client)

    play(story())
    assert len(core.requests) == 2


def test_mesh_state_that_cannot_be_is_an_error(make_core: MakeCore, tmp_path: Path) -> None:
    make_core(lambda _request, _fds: (say(part={"trust_domain": "example.org", "workloads": [{"name": 1}]}), []))

    async def story() -> None:
        with client_of(tmp_path) as client, pytest.raises(CoreError, match="mesh state that cannot be read"):
            await client.mesh_read()

    play(story())


@pytest.mark.parametrize("field", ["name", "identity", "addresses"])
def test_workload_that_cannot_be_is_an_error(make_core: MakeCore, tmp_path: Path, field: str) -> None:
    row = {"key": 1, "name": "a/b", "identity": "spiffe://example.org/ns/a/sa/b", "addresses": ["10.0.0.1"]}
    row[field] = ["none"] if field == "addresses" else "none"
    hello = json.loads(HELLO) | {"workloads": [row]}
    make_core(lambda _request, _fds: (json.dumps(hello).encode(), []))

    async def story() -> None:
        with client_of(tmp_path) as client, pytest.raises(CoreError, match="what cannot be"):
            await client.hello()

    play(story())


def test_core_that_went_is_told_from_one_that_hangs(make_core: MakeCore, tmp_path: Path) -> None:
    core = make_core(lambda _request, _fds: (say(), []))

    async def story() -> None:
        with client_of(tmp_path) as client:
            await client.live()
            await asyncio.to_thread(core.end)
            with pytest.raises(CoreGone):
                await client.live()
            with pytest.raises(CoreGone, match="no core of generation 1"):
                await client.live()

    play(story())


def test_another_process_at_the_same_socket_is_not_asked(make_core: MakeCore, tmp_path: Path) -> None:
    core = make_core(lambda _request, _fds: (say(), []))

    async def story() -> None:
        with client_of(tmp_path, pid=1) as client, pytest.raises(CoreGone, match="another process"):
            await client.stop()

    play(story())
    assert core.requests == []


def test_client_that_lets_go_leaves_nobody_waiting(make_core: MakeCore, tmp_path: Path) -> None:
    make_core(silent)

    async def story() -> None:
        with client_of(tmp_path) as client:
            asked = [asyncio.create_task(client.live()) for _ in range(3)]
            await asyncio.sleep(0.05)
            client.close()
            assert [type(error) for error in await asyncio.gather(*asked, return_exceptions=True)] == [CoreGone] * 3

    play(story())


def test_queue_of_a_busy_core_is_waited_for(tmp_path: Path) -> None:
    """Its listener is full, which no event tells the end of."""
    path = generations.socket_path(tmp_path, 1)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(control_socket.listen(str(path)))
        with contextlib.suppress(BlockingIOError):
            while True:
                one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                one.setblocking(False)
                one.connect(str(path))

        async def story() -> None:
            client = CoreClient(tmp_path, 1, timeout=0.1)
            with pytest.raises(CoreError, match="does not answer"):
                await client.live()
            client = CoreClient(tmp_path, 1)
            asked = asyncio.create_task(client.live())
            await asyncio.sleep(0.05)
            assert not asked.done()
            listener.accept()[0].close()
            await asyncio.sleep(0.1)
            client.close()
            with pytest.raises(CoreGone):
                await asked

        play(story())


def test_large_request_and_answer_go_over(make_core: MakeCore, tmp_path: Path) -> None:
    rows = [{"id": n, "direction": "outbound", "state": "open"} for n in range(3000)]
    core = make_core(lambda request, _fds: (say(connections=rows) if request["op"] == "connections" else say(), []))

    async def story() -> None:
        with client_of(tmp_path) as client:
            assert len((await client.connections(contract.Connections()))[0]) == 3000
            await client.mesh(mesh(2 * contract.MESH_PART + 1), 1)

    play(story())
    assert [request["op"] for request in core.requests] == ["connections", "mesh_part", "mesh_part", "mesh"]
