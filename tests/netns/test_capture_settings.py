"""Which kernel settings capture needs, and that it needs no others: rp_filter is strict in every test's namespaces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.capture import settings
from support.connection import echoes
from support.pods import Pods

pytestmark = pytest.mark.fast


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pods(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pods]:
    with Pods(tmp_path, version=request.param) as made:
        yield made


BY_CONNTRACK = pytest.mark.ebpf_only("with iptables conntrack keeps the mark too, see test_capture_iptables")


@BY_CONNTRACK
def test_without_fwmark_accept_the_application_answers_past_the_core(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(settings.POD, "net/ipv4/tcp_fwmark_accept")
    pods.echo(pods.server)
    pods.relay(pods.capture().enrol(pods.server_target))
    connection = pods.dial(pods.client, (pods.server_at, 8080), timeout=1)
    with pytest.raises(TimeoutError):
        echoes(connection)


@BY_CONNTRACK
def test_without_fwmark_reflect_a_closed_port_hangs(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(settings.POD_OF_VERSION[pods.version], f"net/ipv{pods.version}/fwmark_reflect")
    pods.relay(pods.capture().enrol(pods.server_target))
    connection = pods.dial(pods.client, (pods.server_at, 8081), timeout=1)
    with pytest.raises(TimeoutError):
        connection.recv(1)


@pytest.mark.parametrize("cookies", [1, 2])
def test_strict_reverse_path_filter_and_no_accept_local(pods: Pods, cookies: int) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relays = [pods.relay(capture.enrol(target)) for target in (pods.client_target, pods.server_target)]
    for pod in (pods.client, pods.server):
        pod.sysctl("net/ipv4/tcp_syncookies", cookies)
        for device in ("all", "lo", "eth0"):
            pod.sysctl(f"net/ipv4/conf/{device}/rp_filter", 1)
            assert pod.sysctl(f"net/ipv4/conf/{device}/accept_local") == "0"
            assert pod.sysctl(f"net/ipv4/conf/{device}/src_valid_mark") == "0"
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)), b"x" * 1_000_000)
    assert [len(relay.flows) for relay in relays] == [1, 1]
