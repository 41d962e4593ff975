"""What stands in the way of capture: one clear line each, and nothing half installed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from nodeseal.capture import routing
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.bpf import maps, steering
from nodeseal.capture.errors import AddressInUseError, AddressNotFoundError, AddressNotReadyError, CaptureError
from nodeseal.capture.journal import Journal
from nodeseal.capture.node import NodeCapture
from nodeseal.linux import bpf, cgroups, mounts, sysctls, tc_filters, xtables
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.namespace import NamespaceGoneError
from support.connection import echoes
from support.patience import wait_for
from support.pods import Pods, compiled

PROGRAMS = pytest.mark.ebpf_only("BPF programs and maps")
PREPARE = (
    "import sys\nfrom pathlib import Path\nfrom nodeseal.capture.backends.backend import Choice\n"
    "from nodeseal.linux.errors import LinuxError\nfrom nodeseal.capture.node import NodeCapture\n"
    "try:\n    NodeCapture(Path(sys.argv[1]), choice=Choice(sys.argv[2])).prepare()\n"
    "except LinuxError as error:\n    print(error)\n"
)


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path) as made:
        yield made


def prepare_in_child(run_dir: Path, *before: str, **environment: str) -> str:
    """What prepare() says in another process; "" when it succeeds."""
    path = os.pathsep.join(item for item in (environment.pop("PYTHONPATH", ""), *sys.path) if item)
    child = subprocess.run(
        [*before, sys.executable, "-c", PREPARE, str(run_dir), "ebpf"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    return child.stdout.strip()


def mounted(run_dir: Path) -> bool:
    return run_dir / "bpf" in mounts.mount_points("bpf")


def test_not_root(tmp_path: Path) -> None:
    # Able to read a checkout that lies in root's home, and nothing more.
    reads = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search")
    message = prepare_in_child(
        tmp_path / "run", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *reads
    )
    assert message == (
        "capture needs root's privileges: user 65534 lacks CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF; run as root"
    )
    assert not (tmp_path / "run").exists()


def test_root_without_cap_bpf(tmp_path: Path) -> None:
    message = prepare_in_child(
        tmp_path / "run", "setpriv", "--bounding-set=-sys_admin,-bpf", "--inh-caps=-sys_admin,-bpf"
    )
    assert message == (
        "capture needs root's privileges: root without all capabilities lacks CAP_SYS_ADMIN, CAP_BPF; run as root"
    )
    assert not (tmp_path / "run").exists()


def test_bcc_missing(tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError\n")
    message = prepare_in_child(tmp_path / "run", PYTHONPATH=str(tmp_path))
    assert "bcc is missing" in message
    assert "apt-get install python3-bpfcc" in message
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


def test_no_cgroup_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "mount_points", lambda _kind, _process="self": [])  # nor does init see one
    with pytest.raises(LinuxError, match=r"no cgroup v2 tree is mounted: mount one"):
        NodeCapture(tmp_path / "run", choice=Choice.EBPF).prepare()
    assert not (tmp_path / "run").exists()


def test_cgroup_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(LinuxError, match="is not a cgroup v2 directory"):
        NodeCapture(tmp_path / "run", tmp_path, Choice.EBPF).prepare()


def test_prepare_undoes_what_it_did_when_a_program_cannot_be_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(program: int, target: int, kind: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("nodeseal.capture.bpf.runtime.compile_in_child", compiled)
    monkeypatch.setattr(bpf, "link_create", refuse)
    with pytest.raises(CaptureError, match="cannot attach to the cgroup"):
        NodeCapture(tmp_path / "run", choice=Choice.EBPF).prepare()
    assert not mounted(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_kernel_that_refuses_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int, attach_type: int, instructions: bytes, name: str) -> int:
        raise bpf.VerifierError(22, "0: (85) call unknown#122\ninvalid func unknown#122\nprocessed 1 insns\n")

    monkeypatch.setattr("nodeseal.capture.bpf.runtime.compile_in_child", compiled)
    monkeypatch.setattr(bpf, "program_load", refuse)
    with pytest.raises(CaptureError, match=r"refused the BPF program mark_connect4.*invalid func unknown#122"):
        NodeCapture(tmp_path / "run", choice=Choice.EBPF).prepare()
    assert not (tmp_path / "run").exists()


def test_namespace_that_does_not_exist(pods: Pods) -> None:
    capture = pods.capture()
    with pytest.raises(NamespaceGoneError, match="network namespace not found: /run/netns/nowhere does not exist"):
        capture.enrol(replace(pods.client_target, netns="nowhere"))
    assert Journal.load(pods.run_dir()).entries == {}


def test_namespace_whose_file_is_left_behind(pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "stale").touch()
    with pytest.raises(NamespaceGoneError, match="is no network namespace"):
        pods.capture().enrol(replace(pods.client_target, netns=str(tmp_path / "stale")))


def test_mesh_port_in_use(pods: Pods) -> None:
    before = pods.client.state()
    pods.echo(pods.client, 15008)
    capture = pods.capture()
    with pytest.raises(
        AddressInUseError, match=r"address in use: 10\.91\.1\.2:15008 in /run/netns/.* is held by another"
    ):
        capture.enrol(pods.client_target)
    assert pods.client.state() == before
    assert Journal.load(pods.run_dir()).entries == {}


def test_address_that_is_not_in_the_namespace(pods: Pods) -> None:
    before = pods.client.state()
    with pytest.raises(CaptureError, match=r"address not found: 10\.0\.0\.9 of default/client"):
        pods.capture().enrol(replace(pods.client_target, addresses=(IPv4Address("10.0.0.9"),)))
    assert pods.client.state() == before


@pytest.fixture
def dual(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, version=6) as made:
        yield made


def test_ipv6_address_that_is_not_in_the_namespace(pods: Pods) -> None:
    before = pods.client.state()
    with pytest.raises(
        AddressNotFoundError, match=r"address not found: 2001:db8::1 of default/client is on no interface"
    ):
        pods.capture().enrol(replace(pods.client_target, addresses=(IPv6Address("2001:db8::1"),)))
    assert pods.client.state() == before


def test_ipv6_that_is_off(dual: Pods) -> None:
    dual.client.sysctl("net/ipv6/conf/all/disable_ipv6", 1)
    with pytest.raises(
        AddressNotFoundError, match=r"address not found: fd91:1::2 of default/client is on no interface"
    ):
        dual.capture().enrol(dual.client_target)


def test_ipv6_that_is_off_on_lo(dual: Pods) -> None:
    dual.client.sysctl("net/ipv6/conf/lo/disable_ipv6", 1)
    before = dual.client.state()
    with pytest.raises(CaptureError, match=r"IPv6 is off on lo in .*: captured connections go by it; sysctl net\.ipv6"):
        dual.capture().enrol(dual.client_target)
    assert dual.client.state() == before


def test_ipv6_address_whose_duplicates_are_looked_for(dual: Pods) -> None:
    dual.client.sysctl("net/ipv6/conf/eth0/accept_dad", 1)
    dual.client.sysctl("net/ipv6/conf/eth0/dad_transmits", 100)
    dual.client.add_address("eth0", "fd91:1::3/64")
    target = replace(dual.client_target, addresses=(IPv6Address("fd91:1::3"),))
    with pytest.raises(
        AddressNotReadyError, match=r"address not ready: fd91:1::3 of default/client is still looked for"
    ):
        dual.capture().enrol(target)


def test_ipv6_address_that_another_host_has(dual: Pods) -> None:
    dual.client.sysctl("net/ipv6/conf/eth0/accept_dad", 1)
    dual.client.add_address("eth0", "fd91:1::1/64")
    wait_for(lambda: "dadfailed" in dual.client.ip("-6", "address", "show", "dev", "eth0"), "the duplicate is found")
    target = replace(dual.client_target, addresses=(IPv6Address("fd91:1::1"),))
    with pytest.raises(
        AddressInUseError, match=r"address in use: fd91:1::1 of default/client is another host's as well"
    ):
        dual.capture().enrol(target)


def test_ipv6_mesh_port_that_is_in_use(dual: Pods) -> None:
    dual.echo(dual.client, 15008, address="fd91:1::2")
    before = dual.client.state()
    with pytest.raises(AddressInUseError, match=r"address in use: \[fd91:1::2\]:15008 in .* is held by another"):
        dual.capture().enrol(dual.client_target)
    assert dual.client.state() == before


def test_lo_is_down(pods: Pods) -> None:
    pods.client.ip("link", "set", "lo", "down")
    with pytest.raises(CaptureError, match="lo is down in"):
        pods.capture().enrol(pods.client_target)


def test_two_workloads_in_one_namespace(pods: Pods) -> None:
    capture = pods.capture()
    capture.enrol(pods.client_target)
    with pytest.raises(CaptureError, match="is default/client's, which is enrolled"):
        capture.enrol(replace(pods.client_target, name="default/other"))


@pytest.mark.parametrize(
    "step",
    [
        "apply",
        "add_routes",
        "add_rules",
        *(pytest.param(step, marks=PROGRAMS) for step in ("add_link", "add_filter", "link_create", "enter_enrolment")),
    ],
)
def test_enrol_undoes_everything_when_a_step_fails(pods: Pods, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    if step == "add_filter":
        monkeypatch.setattr(steering, "probe_tcx", lambda: False)
    before = pods.client.state()
    capture = pods.capture()
    owner = {
        "apply": sysctls,
        "add_link": steering,
        "add_filter": tc_filters,
        "link_create": bpf,
        "enter_enrolment": maps,
    }.get(step, routing)
    original = getattr(owner, step)

    def done_and_failed(*arguments: object, **options: object) -> None:
        result = original(*arguments, **options)
        if step == "link_create":
            os.close(result)
        raise CaptureError("no more")

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, done_and_failed)
        with pytest.raises(CaptureError, match="no more"):
            capture.enrol(pods.client_target)
    assert pods.client.state() == before
    assert Journal.load(pods.run_dir()).entries == {}
    assert list((pods.run_dir() / "bpf").glob("ns-*")) == []
    pods.echo(pods.server)
    assert echoes(pods.dial(pods.client, ("10.91.2.2", 8080)))
    capture.enrol(pods.client_target)


def test_enrol_that_fails_leaves_no_socket_open(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = pods.capture()
    before = len(list(Path("/proc/self/fd").iterdir()))

    def no_room(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        if pods.backend is Choice.EBPF:
            patched.setattr(maps, "enter_listener", no_room)
        else:
            patched.setattr(xtables, "restore", no_room)
        with pytest.raises(CaptureError, match=r"cannot capture default/client .*Too many open files"):
            capture.enrol(pods.client_target)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@PROGRAMS
def test_map_that_does_not_fit_is_replaced(pods: Pods) -> None:
    """By hand; see test_capture_versions.py for another version's."""
    capture = pods.capture()
    capture.enrol(pods.client_target)
    capture.close()
    pinned = pods.run_dir() / "bpf" / "enrolled"
    pinned.unlink()
    other = bpf.map_create(1, 8, 4, 16, 0, "other")
    bpf.pin(other, pinned)
    os.close(other)
    again = pods.capture()
    (adopted,) = again.adopt()
    again.take_listeners(adopted, {})
    relay = pods.relay(adopted)
    pods.echo(pods.server)
    assert echoes(pods.dial(pods.client, ("10.91.2.2", 8080)))
    assert len(relay.flows) == 1
