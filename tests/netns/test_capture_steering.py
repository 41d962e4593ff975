"""How steer_ingress.c gets to the devices: by TCX links, beside what others have there, with no harm to the pod."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.capture.bpf import steering
from nodeseal.capture.cleanup import cleanup
from nodeseal.linux import bpf, tc_filters
from nodeseal.linux.tc_filters import Filter
from support.connection import echoes
from support.flood import Flood
from support.namespaces import Namespace
from support.pods import SERVER, Pods

pytestmark = pytest.mark.ebpf_only("how its programs get to the devices")

TCX_PASS = 0
TCX_DROP = 2


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    if not steering.probe_tcx():
        pytest.skip("the kernel has no TCX")
    with Pods(tmp_path) as made:
        yield made


def load_another(pods: Pods, verdict: int) -> int:
    """A program of somebody else's, always with the same verdict; its descriptor."""
    code = b"\xb7\0\0\0" + verdict.to_bytes(4, "little") + b"\x95" + bytes(7)  # mov r0, verdict; exit
    program = bpf.program_load(bpf.PROG_SCHED_CLS, 0, code, "another")
    pods.at_end(lambda: os.close(program))
    return program


def attach_another(pods: Pods, namespace: Namespace, verdict: int) -> int:
    """A TCX program of somebody else's on eth0; its number."""
    program = load_another(pods, verdict)
    link = namespace.run(lambda: bpf.tcx_link_create(program, socket.if_nametoindex("eth0")))
    pods.at_end(lambda: os.close(link))
    return bpf.program_identifier(program)


def make_device(namespace: Namespace, index: int) -> None:
    """eth9, and eth8 with it."""
    namespace.ip("link", "add", "eth9", "index", str(index), "type", "veth", "peer", "name", "eth8")


def test_enrolling_and_unenrolling_loses_nothing_that_the_pod_sends(pods: Pods) -> None:
    capture = pods.capture()
    with Flood(pods.client, pods.router, "10.91.1.1") as flood:
        for _ in range(20):
            capture.enrol(pods.client_target)
            capture.stop_new(pods.client_target)
            capture.release(pods.client_target)
    assert flood.sent > 0
    assert flood.lost == 0


def test_no_qdisc_is_made(pods: Pods) -> None:
    before = pods.client.tc("qdisc", "show")
    pods.capture().enrol(pods.client_target)
    assert pods.client.tc("qdisc", "show") == before


def test_program_runs_before_those_of_others(pods: Pods) -> None:
    pods.echo(pods.server)
    another = attach_another(pods, pods.server, TCX_PASS)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.server_target))
    programs = pods.server.tcx_programs("eth0")
    assert len(programs) == 2
    assert programs[1] == another
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert len(relay.flows) == 1
    capture.release(pods.server_target)
    assert pods.server.tcx_programs("eth0") == [another]


def test_program_that_follows_has_its_say(pods: Pods) -> None:
    pods.echo(pods.server)
    attach_another(pods, pods.server, TCX_DROP)
    pods.relay(pods.capture().enrol(pods.server_target))
    with pytest.raises(TimeoutError):
        pods.dial(pods.client, (SERVER, 8080), timeout=0.5)


def test_tc_filter_that_follows_has_its_say(pods: Pods) -> None:
    pods.echo(pods.server)
    pods.relay(pods.capture().enrol(pods.server_target))
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    drop = load_another(pods, TCX_DROP)
    pods.server.run(
        lambda: tc_filters.add_filter(
            Filter("eth0", socket.if_nametoindex("eth0"), priority=1, handle=1, qdisc=True), drop
        )
    )
    with pytest.raises(TimeoutError):
        pods.dial(pods.client, (SERVER, 8080), timeout=0.5)


def test_stop_new_detaches_and_enrolling_again_attaches(pods: Pods) -> None:
    capture = pods.capture()
    capture.enrol(pods.client_target)
    assert len(pods.client.tcx_programs("eth0")) == 1
    capture.stop_new(pods.client_target)
    assert pods.client.tcx_programs("eth0") == []
    capture.enrol(pods.client_target)
    assert len(pods.client.tcx_programs("eth0")) == 1


def test_link_is_the_same_one_after_the_agent_is_gone_and_back(pods: Pods) -> None:
    first = pods.capture()
    first.enrol(pods.client_target)
    programs = pods.client.tcx_programs("eth0")
    first.close()
    assert pods.client.tcx_programs("eth0") == programs
    second = pods.capture()
    second.adopt()
    second.enrol(pods.client_target)
    assert pods.client.tcx_programs("eth0") == programs


def test_new_device_gets_a_link_of_its_own(pods: Pods) -> None:
    capture = pods.capture()
    capture.enrol(pods.client_target)
    make_device(pods.client, 77)
    assert pods.client.tcx_programs("eth9") == []
    capture.enrol(pods.client_target)
    assert len(pods.client.tcx_programs("eth9")) == 1
    capture.release(pods.client_target)
    assert pods.client.tcx_programs("eth9") == []


def test_device_that_took_the_place_of_another_gets_a_link(pods: Pods) -> None:
    """Same name and number, another device: the pinned link is that of the old one."""
    make_device(pods.client, 77)
    capture = pods.capture()
    capture.enrol(pods.client_target)
    pods.client.ip("link", "del", "eth9")
    make_device(pods.client, 77)
    assert pods.client.tcx_programs("eth9") == []
    capture.enrol(pods.client_target)
    assert len(pods.client.tcx_programs("eth9")) == 1


@pytest.mark.parametrize("steps", [("stop_new", "release"), ("release",)])
def test_device_that_is_gone_is_nothing_to_undo(pods: Pods, steps: tuple[str, ...]) -> None:
    before = pods.client.state()
    make_device(pods.client, 77)
    capture = pods.capture()
    capture.enrol(pods.client_target)
    pods.client.ip("link", "del", "eth9")
    for step in steps:
        getattr(capture, step)(pods.client_target)
    assert pods.client.state() == before
    assert list((pods.run_dir() / "bpf").glob("ns-*")) == []


def test_links_are_removed_without_the_journal(pods: Pods) -> None:
    capture = pods.capture()
    capture.enrol(pods.client_target)
    capture.close()
    (pods.run_dir() / "capture.json").unlink()
    assert cleanup(pods.run_dir()).failed == []
    assert pods.client.tcx_programs("eth0") == []


def test_what_the_version_before_left_is_understood(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knew tc filters only. They stay until the workload is released; devices that come get links."""
    before = pods.client.state()
    with monkeypatch.context() as patched:
        patched.setattr(steering, "probe_tcx", lambda: False)
        old = pods.capture()
        old.enrol(pods.client_target)
    old.close()
    path = pods.run_dir() / "capture.json"
    value = json.loads(path.read_text())
    value["version"] = 1
    for entry in value["entries"].values():
        del entry["links"]
    path.write_text(json.dumps(value))

    capture = pods.capture()
    (adopted,) = capture.adopt()
    make_device(pods.client, 77)
    capture.enrol(adopted.target)
    assert pods.client.filter_exists("eth0")
    assert pods.client.tcx_programs("eth0") == []
    assert len(pods.client.tcx_programs("eth9")) == 1
    pods.client.ip("link", "del", "eth9")
    capture.close()
    for _ in range(2):
        assert cleanup(pods.run_dir()).failed == []
    assert pods.client.state() == before


def test_kernel_that_refuses_tcx_gets_a_filter(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(program: int, index: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(bpf, "tcx_link_create", refuse)
    assert not steering.probe_tcx()
    pods.capture().enrol(pods.client_target)
    assert pods.client.filter_exists("eth0")


def test_probe_leaves_nothing_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    steering.probe_tcx()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
