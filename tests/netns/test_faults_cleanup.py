"""`nodeseal cleanup` and `lab down` leave nothing, whatever was running and however it ended."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nodeseal.linux import bpf
from nodeseal.local import registry
from nodeseal_lab.demo.host_state import attached_programs, pinned_programs
from nodeseal_lab.lab import take_down
from nodeseal_lab.namespaces import list_namespaces, remove_namespace
from nodeseal_lab.plan import prefix
from support.connection import echoes, family_of
from support.lab import RunningLab, running_lab
from support.namespaces import CHANGEABLE_SETTINGS, iptables_rules
from support.patience import PATIENCE, wait_for
from support.process import nodeseal
from support.programs import BOTH_FAMILIES, Programs

CARD = b"card=4111 1111 1111 1111;"
NODES = ("node1", "node2")
PODS = ("shipper", "siem", "pipeline")
LABS_OWN = {"agent.yaml", "agent.log"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab that begins with nothing enrolled, so that one can look at what enrolment changes."""
    with running_lab(
        tmp_path_factory.mktemp("cleanup"), more_pods=("goner:node1:plain",), enrol=False, ipv6=True
    ) as lab:
        yield lab


@pytest.fixture(scope="module")
def untouched(lab: RunningLab) -> dict[str, str]:
    """The pods before anything was ever enrolled."""
    return {pod: pod_state(lab, pod) for pod in PODS}


@pytest.fixture
def programs(lab: RunningLab, untouched: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Programs]:
    """With agents that run and pods that are enrolled, also after a test that removed everything."""
    lab.start_agents()
    lab.lab.enrol(*PODS)
    assert all(pod_state(lab, pod) != untouched[pod] for pod in PODS)
    with Programs(lab, getattr(request, "param", 4)) as programs:
        yield programs


def kill_agents_and_cores(lab: RunningLab) -> None:
    """kill -9 of everything."""
    for node in NODES:
        lab.kill_agent(node)
        lab.kill_core(node)


def kill_agents(lab: RunningLab) -> None:
    """kill -9 of the agents; the cores go on."""
    for node in NODES:
        lab.kill_agent(node)


def kill_nothing(lab: RunningLab) -> None:
    """Everything runs."""


@pytest.mark.both_backends
@pytest.mark.parametrize("before", [kill_agents_and_cores, kill_agents, kill_nothing])
def test_cleanup_leaves_everything_as_it_was(
    lab: RunningLab, programs: Programs, untouched: dict[str, str], before: Callable[[RunningLab], None]
) -> None:
    server = programs.serve("pipeline")
    live = programs.dial("shipper", server.address)
    assert echoes(live)
    pinned = pinned_programs(lab.lab)
    assert pinned <= set(attached_programs())

    before(lab)
    for node in NODES:
        result = cleanup(lab, node)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        assert "removed" in result.stdout

    for pod in PODS:
        assert pod_state(lab, pod) == untouched[pod]
    for node in NODES:
        assert mounts_below(lab.run_dir(node)) == []
        assert {entry.name for entry in lab.run_dir(node).iterdir()} <= LABS_OWN
        assert processes_with(lab.run_dir(node)) == []
        assert not (lab.lab.mesh / "enrolled" / f"{node}.yaml").exists()
    # The kernel takes programs apart a moment after their last reference has gone.
    wait_for(lambda: not pinned & set(attached_programs()), "the connect programs are detached")
    # The pods' applications talk on, without the mesh.
    assert echoes(programs.dial("shipper", server.address))


def test_cleanup_twice_in_a_row_is_harmless(lab: RunningLab, programs: Programs, untouched: dict[str, str]) -> None:
    kill_agents_and_cores(lab)
    for node in NODES:
        assert cleanup(lab, node).returncode == 0
        again = cleanup(lab, node)
        assert (again.returncode, again.stdout, again.stderr) == (0, "nothing to remove\n", "")
    assert {pod: pod_state(lab, pod) for pod in PODS} == untouched


def test_cleanup_of_a_directory_that_never_was(tmp_path: Path) -> None:
    result = nodeseal("cleanup", "--run-dir", str(tmp_path / "never"))
    assert (result.returncode, result.stdout) == (0, "nothing to remove\n")
    assert not (tmp_path / "never").exists()


def test_agent_starts_again_after_cleanup(lab: RunningLab, programs: Programs) -> None:
    kill_agents_and_cores(lab)
    for node in NODES:
        cleanup(lab, node)
    lab.start_agents()
    wait_for(lambda: lab.enrolled(*PODS), "everything is enrolled again")
    server = programs.serve("pipeline")
    with programs.sniff() as wire:
        assert echoes(programs.dial("shipper", server.address), CARD)
        assert not wire.carries(CARD)


@BOTH_FAMILIES
def test_cleanup_ends_captured_connections_and_none_goes_on_in_plaintext(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client, CARD)

    def write() -> None:
        with contextlib.suppress(OSError):
            while True:
                client.sendall(CARD)

    with programs.sniff() as wire:
        writer = programs.thread(write)
        reader = programs.thread(lambda: _drain(client))
        for node in NODES:
            assert cleanup(lab, node).returncode == 0
        writer.result()
        reader.result()
        assert not wire.carries(CARD)


@BOTH_FAMILIES
def test_cleanup_ends_a_connection_that_waits_and_it_does_not_begin_in_plaintext(
    lab: RunningLab, programs: Programs
) -> None:
    """It was dialled while it had to be protected: without its routes, its next SYN would leave as it is."""
    server = programs.serve("pipeline")
    kill_agents_and_cores(lab)

    def dial() -> socket.socket:
        client = socket.socket(family_of(server.address[0]))
        client.setblocking(False)
        client.connect_ex(server.address)
        client.settimeout(PATIENCE)
        return client

    client = lab.run("shipper", dial)
    programs.at_end(client.close)
    with programs.sniff() as wire:
        for node in NODES:
            assert cleanup(lab, node).returncode == 0
        # Ended, or established past the mesh: either way it can be written to or tells why not.
        select.select([], [client], [], PATIENCE)
        with pytest.raises(OSError):  # noqa: PT011
            client.sendall(CARD)
        assert not wire.carries(CARD)
    assert server.peers == []


def test_cleanup_when_a_namespace_is_gone(lab: RunningLab, programs: Programs, untouched: dict[str, str]) -> None:
    lab.lab.enrol("goner")
    kill_agents_and_cores(lab)
    remove_namespace(lab.lab.plan.pod("goner").netns)
    result = cleanup(lab, "node1")
    assert (result.returncode, result.stderr) == (0, "")
    assert pod_state(lab, "shipper") == untouched["shipper"]
    assert {entry.name for entry in lab.run_dir("node1").iterdir()} <= LABS_OWN


def test_lab_down_after_kill_9_of_everything_leaves_nothing(lab_root: Path) -> None:
    with running_lab(lab_root) as lab:
        name = lab.lab.plan.name
        kill_agents_and_cores(lab)
        report = take_down(name, lab_root)
        assert report.failures == ()
        assert list_namespaces(prefix(name)) == []
        assert mounts_below(lab.directory) == []
        assert processes_with(lab.directory) == []
        assert not lab_root.exists()
        assert [registry.note_of(lab.run_dir(node)) for node in NODES] == [None, None]


def test_command_finds_a_node_of_which_nothing_runs_any_more(
    lab: RunningLab, programs: Programs, untouched: dict[str, str]
) -> None:
    """Inside its network namespace, whatever its run directory."""
    kill_agents_and_cores(lab)
    inside = ("nsenter", f"--net=/run/netns/{lab.lab.plan.node('node1').netns}")
    done = nodeseal("cleanup", prefix=inside)
    assert (done.returncode, done.stderr) == (0, "")
    assert pod_state(lab, "shipper") == untouched["shipper"]
    assert pod_state(lab, "pipeline") != untouched["pipeline"]  # of node2
    again = nodeseal("cleanup", prefix=inside)
    assert (again.returncode, again.stdout) == (2, "")
    assert pod_state(lab, "pipeline") != untouched["pipeline"]


def cleanup(lab: RunningLab, node: str) -> subprocess.CompletedProcess[str]:
    """`nodeseal cleanup` for a node."""
    return nodeseal("cleanup", "--run-dir", str(lab.run_dir(node)))


def pod_state(lab: RunningLab, pod: str) -> str:
    """Everything in the pod's namespace that could be changed: rules, routes, traffic control, iptables, settings."""
    commands = [
        ["ip", "rule", "show"],
        ["ip", "-6", "rule", "show"],
        ["ip", "route", "show", "table", "all"],
        ["ip", "-6", "route", "show", "table", "all"],
        ["tc", "qdisc", "show"],
        ["tc", "filter", "show", "dev", "eth0", "ingress"],
        ["tc", "filter", "show", "dev", "lo", "ingress"],
        ["sysctl", "-a", "--pattern", CHANGEABLE_SETTINGS],
    ]

    def read() -> str:
        shown = "".join(
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
            for command in commands
        )
        shown += "\n".join(iptables_rules())
        return f"{shown}tcx {bpf.tcx_programs(socket.if_nametoindex('eth0'))}"

    return lab.run(pod, read)


def mounts_below(directory: Path) -> list[str]:
    """The mount points in a directory."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(directory)]


def processes_with(directory: Path) -> list[str]:
    """The command lines that name a directory."""
    lines = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(directory) in line]


def _drain(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while client.recv(1 << 16):
            pass
