"""Workloads with more than one address of a family: what is captured, and where peers' tunnels arrive."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeseal.capture import constants
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.bpf.pins import opened
from nodeseal.capture.errors import AddressInUseError
from nodeseal.capture.workload import Captured, CaptureTarget
from nodeseal.linux import bpf, socket_options
from support.connection import echoes, family_of
from support.patience import wait_for
from support.pods import Pods

SECOND = {4: "10.91.1.3", 6: "fd91:1::3"}
THIRD = {4: "10.91.1.4", 6: "fd91:1::4"}
HBONE = {4: 2, 6: 3}


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pods(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pods]:
    with Pods(tmp_path, version=request.param) as made:
        for address in (SECOND[made.version], THIRD[made.version]):
            made.client.add_address("eth0", f"{address}/{24 if made.version == 4 else 64}")
        yield made


def with_second(pods: Pods) -> CaptureTarget:
    target = pods.client_target
    return replace(target, addresses=(*target.addresses, ip_address(SECOND[pods.version])))


def listener_of(captured: Captured, version: int) -> socket.socket:
    listener = socket.socket(fileno=os.dup(captured.listeners[HBONE[version]]))
    listener.settimeout(5)
    return listener


def bound(pods: Pods, address: str, port: int) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(family_of(address))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen()
        made.setblocking(False)
        return made

    made = pods.client.run(make)
    pods.at_end(made.close)
    return made


def test_tunnels_arrive_at_every_address(pods: Pods) -> None:
    captured = pods.capture().enrol(with_second(pods))
    with listener_of(captured, pods.version) as listener:
        for address in (pods.client_at, SECOND[pods.version]):
            pods.dial(pods.server, (address, constants.HBONE_PORT))
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockname()[0] == address


def test_an_application_cannot_take_the_port_of_tunnels_at_a_further_address(pods: Pods) -> None:
    captured = pods.capture().enrol(with_second(pods))
    application = bound(pods, SECOND[pods.version], constants.HBONE_PORT)
    with listener_of(captured, pods.version) as listener:
        pods.dial(pods.server, (SECOND[pods.version], constants.HBONE_PORT))
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            application.accept()


def test_a_further_address_whose_port_for_tunnels_is_held_is_told(pods: Pods) -> None:
    bound(pods, SECOND[pods.version], constants.HBONE_PORT)
    with pytest.raises(AddressInUseError, match=f"{SECOND[pods.version]}.*15008"):
        pods.capture().enrol(with_second(pods))


def test_no_tunnel_arrives_at_an_address_that_is_not_attributed(pods: Pods) -> None:
    pods.capture().enrol(with_second(pods))
    with pytest.raises(ConnectionRefusedError):
        pods.dial(pods.server, (THIRD[pods.version], constants.HBONE_PORT))


def test_nothing_else_is_given_to_the_listener_for_tunnels(pods: Pods) -> None:
    """A port next to it is steered, as at any address."""
    captured = pods.capture().enrol(with_second(pods))
    pods.echo(pods.client)
    relay = pods.relay(captured)
    assert echoes(pods.dial(pods.server, (SECOND[pods.version], 8080)))
    assert [flow.destination for flow in relay.flows] == [(SECOND[pods.version], 8080)]


def test_own_addresses_are_not_captured_when_they_are_dialled(pods: Pods) -> None:
    captured = pods.capture().enrol(with_second(pods))
    pods.echo(pods.client)
    relay = pods.relay(captured)
    for address in (pods.client_at, SECOND[pods.version], THIRD[pods.version]):
        dialled = pods.dial(pods.client, (address, 8080))
        assert echoes(dialled)
        assert dialled.getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK) == 0
    assert relay.flows == []


def test_what_is_dialled_from_a_further_address_is_captured(pods: Pods) -> None:
    captured = pods.capture().enrol(with_second(pods))
    pods.echo(pods.server)
    relay = pods.relay(captured)
    for address in (SECOND[pods.version], THIRD[pods.version]):

        def dial(source: str = address) -> socket.socket:
            return socket.create_connection((pods.server_at, 8080), 5, source_address=(source, 0))

        with pods.client.run(dial) as dialled:
            assert echoes(dialled)
    assert [flow.source[0] for flow in relay.flows] == [SECOND[pods.version], THIRD[pods.version]]


def test_addresses_that_are_not_attributed_are_named_and_absent_ones_too(pods: Pods) -> None:
    target = with_second(pods)
    gone = ip_address("10.91.1.99")
    captured = pods.capture().enrol(replace(target, addresses=(*target.addresses, gone)))
    assert captured.addresses.unattributed == (THIRD[pods.version],)
    assert captured.addresses.absent == (str(gone),)


def test_an_address_comes_and_goes_while_connections_go_on(pods: Pods) -> None:
    capture = pods.capture()
    captured = capture.enrol(pods.client_target)
    pods.echo(pods.server)
    pods.echo(pods.client)
    pods.relay(captured)
    outbound = pods.dial(pods.client, (pods.server_at, 8080))
    inbound = pods.dial(pods.server, (SECOND[pods.version], 8080))
    assert echoes(outbound) and echoes(inbound)  # noqa: PT018
    with listener_of(captured, pods.version) as listener:
        with pytest.raises(ConnectionRefusedError):
            pods.dial(pods.server, (SECOND[pods.version], constants.HBONE_PORT))
        assert capture.enrol(with_second(pods)) is captured
        pods.dial(pods.server, (SECOND[pods.version], constants.HBONE_PORT))
        listener.accept()[0].close()
        assert echoes(outbound) and echoes(inbound)  # noqa: PT018
        assert capture.enrol(pods.client_target) is captured
        with pytest.raises(ConnectionRefusedError):
            pods.dial(pods.server, (SECOND[pods.version], constants.HBONE_PORT))
        assert echoes(outbound) and echoes(inbound)  # noqa: PT018


def test_what_has_come_to_the_namespace_is_seen(pods: Pods) -> None:
    capture = pods.capture()
    capture.enrol(with_second(pods))
    name = pods.client_target.name
    assert not capture.look_again(name)
    pods.client.ip("address", "del", f"{THIRD[pods.version]}/{24 if pods.version == 4 else 64}", "dev", "eth0")
    wait_for(lambda: capture.look_again(name), "the change is seen")
    capture.close()
    later = pods.capture()
    later.adopt()
    assert later.look_again(name), "the journal has the address that is gone"


def test_nothing_of_the_addresses_stays_behind(tmp_path: Path) -> None:
    """What the connect program of all workloads is told."""
    with Pods(tmp_path, backend=Choice.EBPF) as pods:
        pods.client.add_address("eth0", f"{SECOND[4]}/24")
        capture = pods.capture()
        capture.enrol(with_second(pods))
        with opened(pods.run_dir() / "bpf" / "owned") as owned:
            assert len(list(bpf.map_keys(owned, 24))) == 2
            capture.release(pods.client_target)
            assert list(bpf.map_keys(owned, 24)) == []
