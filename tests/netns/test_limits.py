"""Limits of a workload, live: what exceeds them is reset and told, what runs goes on, and neighbours feel nothing."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nodeseal_lab.mesh_state import change_workloads
from support.connection import Address, echoes, receive_exactly, silent
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Lines, Programs

MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """One worker for each core, so that all workloads of a node share it."""
    with running_lab(tmp_path_factory.mktemp("limits"), settings={"workers": 1}) as lab:
        yield lab


@pytest.fixture(autouse=True)
def unlimited(lab: RunningLab) -> Iterator[None]:
    """Afterwards every workload has its node's limits again."""
    yield
    for pod in ("shipper", "pipeline"):
        limit(lab, pod)


def limit(lab: RunningLab, pod: str, **limits: Any) -> None:
    """Sets the pod's limits in the mesh state and waits until its core goes by them."""
    change_workloads(lab.lab.mesh, {pod: {"limits": limits}})
    defaults = {"connections": 20_000, "memory": 256 * MIB, "new_connections": 20_000}
    wanted = {name: value or None for name, value in (defaults | limits).items()}

    def in_force() -> bool:
        told = lab.workload(pod)["limits"]
        return bool(told) and all(told[name]["limit"] == value for name, value in wanted.items())

    wait_for(in_force, f"the core of {pod} goes by the limits {limits}")


def refused(lab: RunningLab, pod: str, name: str) -> int:
    """How many connections of the pod this limit has refused."""
    count: int = lab.workload(pod)["limits"][name]["refused"]
    return count


def is_reset(programs: Programs, pod: str, address: Address) -> bool:
    """Whether a new connection is refused, or reset; otherwise it stays open. (One that is closed in order is an
    error.)"""
    try:
        client = programs.dial(pod, address)
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return True
    return False


def reason_shown(lab: RunningLab, node: str, pod: str, reason: str) -> bool:
    """Whether `nodeseal connections` shows a closed connection of the pod with this reason."""
    rows = lab.connections(node)
    return any(row["workload"] == f"default/{pod}" and row["reason"] == reason for row in rows)


def test_connections_beyond_the_limit_are_reset_and_told_everywhere(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    before = refused(lab, "shipper", "connections")
    neighbour = Lines(programs, "siem", server.address)
    limit(lab, "shipper", connections=3)
    running = [programs.dial("shipper", server.address) for _ in range(3)]
    assert all(echoes(one) for one in running)
    for _ in range(4):
        assert is_reset(programs, "shipper", server.address)
    assert refused(lab, "shipper", "connections") == before + 4
    told = lab.workload("shipper")["limits"]["connections"]
    assert (told["limit"], told["last_seconds"] < 60) == (3, True)
    assert reason_shown(lab, "node1", "shipper", "limit-connections")
    text = lab.command("status", "--run-dir", str(lab.run_dir("node1"))).stdout
    assert f"default/shipper: limit reached: connections (3), {before + 4} refused since" in text
    log = lab.run_dir("node1") / "core.log"
    line = "workload default/shipper: limit reached: connections (3), "
    wait_for(lambda: line in log.read_text(), "the core's log tells it")
    assert all(echoes(one) for one in running)
    neighbour.goes_on()
    # One that ends makes room, and so does a higher limit, at once and with no restart.
    running.pop().close()
    wait_for(lambda: lab.workload("shipper")["connections"] == 2, "the core knows that one has ended")
    assert not is_reset(programs, "shipper", server.address)
    limit(lab, "shipper", connections=100)
    assert not is_reset(programs, "shipper", server.address)
    assert all(echoes(one) for one in running)
    neighbour.finish()


def test_streams_beyond_the_receivers_limit_reset_the_client(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    before = refused(lab, "pipeline", "connections")
    running = programs.dial("shipper", server.address)
    assert echoes(running)
    # What counts at the receiver: streams, and tunnels that peers opened.
    receiver = lab.workload("pipeline")
    limit(lab, "pipeline", connections=receiver["connections"] + receiver["tunnels"])
    assert is_reset(programs, "shipper", server.address)
    assert refused(lab, "pipeline", "connections") == before + 1
    (row,) = lab.refused("node2", workload="default/pipeline", reason="limit-connections")
    assert (row["kind"], row["status"], row["source_workload"]) == ("stream", 503, "default/shipper")
    assert echoes(running)


def test_connections_that_come_too_fast_are_reset(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    before = refused(lab, "shipper", "new_connections")
    limit(lab, "shipper", new_connections=1)
    resets = sum(is_reset(programs, "shipper", server.address) for _ in range(10))
    assert resets >= 1
    assert refused(lab, "shipper", "new_connections") == before + resets
    assert reason_shown(lab, "node1", "shipper", "limit-rate")
    limit(lab, "shipper", new_connections=0)
    assert not is_reset(programs, "shipper", server.address)


BULK = 12 * MIB


def send_bulk(connection: socket.socket) -> None:
    """A handler that, once it is asked, sends more than all buffers on the way hold."""
    connection.recv(1)
    connection.sendall(bytes(BULK))
    silent(connection)


def limit_memory(lab: RunningLab) -> None:
    """1 MiB for shipper."""
    change_workloads(lab.lab.mesh, {"shipper": {"limits": {"memory": "1MiB"}}})
    wait_for(lambda: lab.workload("shipper")["limits"]["memory"]["limit"] == MIB, "the core goes by the limit")


def test_a_workload_that_reads_nothing_fills_its_memory_and_slows_nobody(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", send_bulk)
    echo_server = programs.serve("pipeline")
    before = refused(lab, "shipper", "memory")
    neighbour = Lines(programs, "siem", echo_server.address)
    same_tunnel = Lines(programs, "shipper", echo_server.address)
    stalled = [programs.dial("shipper", server.address) for _ in range(8)]
    for connection in stalled:
        connection.sendall(b"x")
    wait_for(lambda: lab.workload("shipper")["memory"] >= 2 * MIB, "the workload holds more than it may in a moment")
    limit_memory(lab)
    assert is_reset(programs, "shipper", echo_server.address)
    assert refused(lab, "shipper", "memory") == before + 1
    assert reason_shown(lab, "node1", "shipper", "limit-memory")
    neighbour.goes_on()
    same_tunnel.goes_on()
    for connection in stalled:
        assert receive_exactly(connection, BULK) == bytes(BULK)
    wait_for(lambda: lab.workload("shipper")["memory"] == 0, "nothing is held any more")
    assert not is_reset(programs, "shipper", echo_server.address)
    neighbour.finish()
    same_tunnel.finish()


def test_in_relayed_plaintext_a_workload_that_reads_nothing_holds_less_than_its_limit(tmp_path: Path) -> None:
    settings = {"workers": 1, "plaintext": "proxied"}
    with running_lab(tmp_path, settings=settings) as lab, Programs(lab) as programs:
        server = programs.serve("intruder", send_bulk)
        echo_server = programs.serve("intruder")
        # Beside a light workload pieces are small. What a stalled one holds is what its last read happened to find.
        neighbour = Lines(programs, "siem", echo_server.address)
        same = Lines(programs, "shipper", echo_server.address)
        stalled: list[socket.socket] = []
        limit_memory(lab)

        def half_is_held() -> bool:
            if lab.workload("shipper")["memory"] >= MIB // 2:
                return True
            if len(stalled) < 400:
                # One may be refused: the last few may have come to hold all of it meanwhile.
                with contextlib.suppress(ConnectionRefusedError):
                    stalled.append(programs.dial("shipper", server.address))
                    stalled[-1].sendall(b"x")
            return False

        wait_for(half_is_held, "the workload holds half of what it may")
        same.goes_on()
        # What was spliced before it was half: one pipe.
        assert lab.workload("shipper")["memory"] <= 2 * MIB
        for connection in stalled:
            assert receive_exactly(connection, BULK) == bytes(BULK)
        wait_for(lambda: lab.workload("shipper")["memory"] == 0, "nothing is held any more")
        neighbour.finish()
        same.finish()


@pytest.mark.ebpf_only("with iptables plaintext goes through the core")
@pytest.mark.parametrize("way", ["outbound", "inbound"])
def test_native_connections_count_with_the_others(lab: RunningLab, programs: Programs, way: str) -> None:
    """One more is refused, and so is one that would be tunnelled, from here. One that ends makes room."""
    limited = "shipper" if way == "outbound" else "pipeline"
    client, server = ("shipper", "intruder") if way == "outbound" else ("intruder", "pipeline")
    plain, mtls = programs.serve(server), programs.serve("pipeline")
    before = refused(lab, limited, "connections")
    wait_for(lambda: lab.workload(limited)["connections"] == 0, "what other tests had has ended")
    told = lab.workload(limited)
    running = [programs.dial(client, plain.address) for _ in range(3)]
    assert all(echoes(one) for one in running)
    assert lab.workload(limited)["native"]["open"] == told["native"]["open"] + 3
    # Tunnels that peers opened count as well.
    limit(lab, limited, connections=3 + (told["tunnels"] if way == "inbound" else 0))
    with pytest.raises(ConnectionRefusedError):
        programs.dial(client, plain.address)
    if way == "outbound":
        assert is_reset(programs, "shipper", mtls.address)
    assert refused(lab, limited, "connections") == before + (2 if way == "outbound" else 1)
    assert all(echoes(one) for one in running)
    running.pop().close()
    wait_for(lambda: lab.workload(limited)["native"]["open"] == told["native"]["open"] + 2, "one has ended")
    assert not is_reset(programs, client, plain.address)


@contextlib.contextmanager
def descriptors_limited(pid: int, count: int) -> Iterator[None]:
    """Lowers another process's RLIMIT_NOFILE (prlimit(2)) for a while."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def open_descriptors(pid: int) -> int:
    return psutil.Process(pid).num_fds()


def test_when_descriptors_run_out_new_connections_are_reset_and_others_go_on(
    lab: RunningLab, programs: Programs
) -> None:
    server = programs.serve("pipeline")
    pid = lab.core_pid("node1")
    before = refused(lab, "shipper", "descriptors")
    running = programs.dial("shipper", server.address)
    assert echoes(running)
    most = open_descriptors(pid) + 150
    with descriptors_limited(pid, most):
        wait_for(lambda: lab.status("node1")["core"]["descriptors"]["limit"] == most, "the core knows its limit")
        flood = 0
        while not is_reset(programs, "shipper", server.address):
            flood += 1
            assert flood < most
        assert refused(lab, "shipper", "descriptors") == before + 1
        assert reason_shown(lab, "node1", "shipper", "limit-descriptors")
        assert open_descriptors(pid) < most, "the core keeps some for itself"
        assert echoes(running)
        # The neighbour has its part, and the agent can still be served.
        assert not is_reset(programs, "siem", server.address)
        assert lab.workload("siem")["enrolled"]
    wait_for(lambda: lab.status("node1")["core"]["descriptors"]["limit"] > most, "the core knows its limit")
    assert not is_reset(programs, "shipper", server.address)
    assert echoes(running)


def test_a_neighbours_requests_all_succeed_while_a_flood_stands(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", silent)
    echo_server = programs.serve("pipeline")
    limit(lab, "shipper", connections=200)
    before = refused(lab, "shipper", "connections")
    neighbour = Lines(programs, "siem", echo_server.address)
    neighbour.goes_on()
    resets = 0
    standing: list[socket.socket] = []
    for _ in range(400):
        try:
            standing.append(programs.dial("shipper", server.address))
        except (ConnectionRefusedError, ConnectionResetError):
            resets += 1
    neighbour.goes_on()
    wait_for(lambda: refused(lab, "shipper", "connections") - before == 200, "what exceeds the limit is refused")
    for client in standing:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            try:
                assert client.recv(1) == b""
            except ConnectionResetError:
                resets += 1
    assert resets == 200
    # New connections of the neighbour, and requests on the old one, all while the flood stands.
    for _ in range(20):
        assert echoes(programs.dial("siem", echo_server.address))
    neighbour.goes_on()
    neighbour.finish()
