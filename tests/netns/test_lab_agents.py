"""The whole lab on a real kernel, with agents and cores: what a newcomer types, and `down` after the worst."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from nodeseal.linux import mounts
from nodeseal_lab import agents
from nodeseal_lab.demo.host_state import HostState, attached_programs, pinned_programs
from nodeseal_lab.demo.scene import Scene
from nodeseal_lab.errors import AgentError
from nodeseal_lab.lab import LAB_ROOT, Lab, take_down
from nodeseal_lab.namespaces import list_namespaces, run_in
from nodeseal_lab.plan import PIPELINE_HTTP_PORT, Plan, prefix
from nodeseal_lab.processes import child_environment
from support.lab import QUICK_SETTLE
from support.namespaces import Namespace, Namespaces
from support.patience import wait_for
from support.process import end_process, nodeseal_command
from support.settings import lab_settings

NAME = f"a{os.getpid()}"
CATEGORIES = (
    "routing rules",
    "routing rules (IPv6)",
    "routes",
    "routes (IPv6)",
    "interfaces",
    "traffic control",
    "/sys/fs/bpf",
)
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    """Every lab has the number of worker threads that was asked for, and settles soon."""
    with lab_settings({"settle": QUICK_SETTLE}):
        yield


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    """A lab with IPv6 that tests look at, and leave as it was."""
    name = f"{NAME}s"
    try:
        yield Lab.up(Plan.build(name, ipv6=True))
    finally:
        take_down(name)


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a lab that the test makes and may wreck."""
    yield NAME
    take_down(NAME)


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A network namespace in the host's place, which has something of every kind: nobody else changes it."""
    with Namespaces() as net:
        host = net.create("host")
        host.ip("address", "add", "192.0.2.1/32", "dev", "lo")
        host.ip("rule", "add", "from", "192.0.2.1", "lookup", "77")
        host.ip("route", "add", "unreachable", "198.51.100.0/24", "table", "77")
        host.tc("qdisc", "add", "dev", "lo", "clsact")
        yield host


def nodeseal(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*nodeseal_command(), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=child_environment(),
    )


def connections(lab: Lab, node: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = msgspec.to_builtins(agents.connections_of(lab.run_dirs[node]))
    return rows


def traces(lab: Lab) -> list[str]:
    """What is left of a lab: namespaces, processes with its directory among their arguments, mounts, its directory."""
    found = list_namespaces(prefix(lab.plan.name))
    for one in psutil.process_iter(["cmdline", "status"]):
        arguments = one.info["cmdline"] or []
        if one.info["status"] != psutil.STATUS_ZOMBIE and any(f"{lab.directory}/" in part for part in arguments):
            found.append(f"{one.pid} {' '.join(arguments)}")
    found += [str(mount) for mount in mounts.mount_points("bpf") if str(mount).startswith(f"{lab.directory}/")]
    return found + ([str(lab.directory)] if lab.directory.exists() else [])


def test_status_has_the_promised_shape(shared: Lab) -> None:
    status = json.loads(nodeseal("lab", "status", "--name", shared.plan.name, "-o", "json").stdout)
    assert set(status) == {"nodes", "pods", "supervisor_pid"}
    node_keys = {"name", "netns", "address", "addresses", "agent_pid", "core_pids", "trust_domain"}
    assert all(set(node) == node_keys for node in status["nodes"])
    pod_keys = {"name", "node", "netns", "address", "addresses", "enrolled", "identity"}
    assert all(set(pod) == pod_keys for pod in status["pods"])


def test_up_returns_when_the_pods_are_enrolled(shared: Lab) -> None:
    assert {pod.name: pod.identity for pod in shared.status().pods if pod.enrolled} == {
        "shipper": "spiffe://example.org/ns/default/sa/shipper",
        "siem": "spiffe://example.org/ns/default/sa/siem",
        "pipeline": "spiffe://example.org/ns/default/sa/pipeline",
    }


def test_status_names_the_processes_that_run(shared: Lab) -> None:
    for node in shared.status().nodes:
        for pid in (node.agent_pid, *node.core_pids):
            assert str(shared.run_dirs[node.name]) in Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.parametrize(
    ("host", "version"),
    [
        ("10.77.2.10", 4),
        ("10.77.200.1", 4),
        ("[fd77::2:10]", 6),
        ("[fd77::200:1]", 6),
        ("pipeline", 6),
        ("pipeline.svc", 6),
    ],
)
def test_shipper_reaches_pipeline_over_mtls(shared: Lab, host: str, version: int) -> None:
    before = {one["id"] for one in connections(shared, "node1")}
    result = nodeseal(
        *("lab", "exec", "--name", shared.plan.name, "shipper", "--"),
        *("curl", "-gsS", "--max-time", "10", f"http://{host}:8080/"),
    )
    assert (result.stdout, result.stderr) == ("pipeline: ready\n", "")
    (one,) = [one for one in connections(shared, "node1") if one["id"] not in before]
    assert (one["mtls"], one["peer"]) == (True, "spiffe://example.org/ns/default/sa/pipeline")
    assert one["endpoint"] == ("10.77.2.10:8080" if version == 4 else "[fd77::2:10]:8080")


@pytest.mark.parametrize("host", ["10.77.2.10", "[fd77::2:10]"])
def test_intruder_reaches_pipeline_in_plaintext(shared: Lab, host: str) -> None:
    result = shared.run("intruder", ["curl", "-gsS", "--max-time", "10", f"http://{host}:8080/"])
    assert result.stdout == "pipeline: ready\n"


def test_strict_pod_refuses_intruder_at_once(shared: Lab) -> None:
    shared.set_mode("pipeline", "strict")
    try:
        for host in ("10.77.2.10", "[fd77::2:10]"):
            command = ["curl", "-gsS", "--max-time", "10", f"http://{host}:8080/"]
            assert shared.run("intruder", command).returncode != 0
    finally:
        shared.set_mode("pipeline", "permissive")


def test_pod_is_enrolled_and_un_enrolled_live(shared: Lab) -> None:
    def enrolled() -> bool:
        return next(pod.enrolled for pod in shared.status().pods if pod.name == "intruder")

    assert not enrolled()
    shared.enrol("intruder")
    assert enrolled()
    shared.unenrol("intruder")
    assert not enrolled()


def test_enrolment_that_cannot_be_says_why(shared: Lab) -> None:
    # An enrolment of before may hold the port until it has drained.
    taken = """
import errno, socket, sys
while True:
    try:
        server = socket.create_server(("10.77.2.11", 15008))
        break
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
print("ready", flush=True)
sys.stdin.read()
"""
    argv = [sys.executable, "-m", "nodeseal", "lab", "exec", "--name", shared.plan.name, "intruder", "--"]
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(
            [*argv, sys.executable, "-c", taken],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
        ) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        patch.setattr(agents, "CHANGE_SECONDS", 3.0)
        with pytest.raises(AgentError, match=r"not enrolled after 3 s: intruder: .*15008"):
            shared.enrol("intruder")
    shared.unenrol("intruder")


def test_down_leaves_the_host_as_it_was(name: str, host: Namespace) -> None:
    def read() -> dict[str, frozenset[str]]:
        state = host.run(HostState.read)
        return {key: state.lines[key] for key in CATEGORIES}

    before = read()
    lab = host.run(lambda: Lab.up(Plan.build(name)))
    ours = pinned_programs(lab)
    assert ours <= set(attached_programs())
    assert host.run(lambda: take_down(name)).failures == ()
    assert_nothing_left(lab, ours)
    assert read() == before


def test_down_after_everything_was_killed(name: str) -> None:
    lab = Lab.up(Plan.build(name))
    ours = pinned_programs(lab)
    assert ours <= set(attached_programs())
    for node in lab.status().nodes:
        for pid in (node.agent_pid, *node.core_pids):
            os.kill(pid, signal.SIGKILL)
    assert take_down(name).failures == ()
    assert_nothing_left(lab, ours)


def assert_nothing_left(lab: Lab, programs: set[int]) -> None:
    """No trace of the lab. `programs`: those that its nodes had attached to the cgroup."""
    assert traces(lab) == []
    # The kernel takes programs apart a moment after their last reference has gone.
    wait_for(lambda: not programs & set(attached_programs()), "the connect programs are detached")


def test_status_and_enrolment_outlive_the_agents(name: str) -> None:
    lab = Lab.up(Plan.build(name), supervised=False)
    for node in lab.status().nodes:
        end_process(node.agent_pid)
    lab.processes.end(record for record in lab.processes.records() if record.role.startswith("agent"))
    status = lab.status()
    assert [node.agent_pid for node in status.nodes] == [None, None]
    assert [pod.name for pod in status.pods if pod.enrolled] == ["shipper", "siem", "pipeline"]
    result = lab.run("shipper", ["curl", "-sS", "--max-time", "10", "http://10.77.2.10:8080/"])
    assert result.stdout == "pipeline: ready\n"


def test_down_ends_an_agent_that_was_started_again_by_hand(name: str) -> None:
    lab = Lab.up(Plan.build(name, enrol=False), supervised=False)
    lab.processes.end(record for record in lab.processes.records() if record.role == "agent node1")
    table = type(lab.processes)(lab.directory / "by-hand")
    run_dir = lab.run_dirs["node1"]
    again = agents.start_agent(table, lab.plan.node("node1"), run_dir)
    agents.wait_for_agents(lab.run_dirs, [again])
    take_down(name)
    assert traces(lab) == []
    assert not again.alive


def test_up_whose_agents_cannot_start_says_why_and_leaves_nothing(name: str) -> None:
    with (
        lab_settings({"settle": "soon"}),
        pytest.raises(AgentError, match=r"the agent of node1 ended: .*settle"),
    ):
        Lab.up(Plan.build(name))
    assert list_namespaces(prefix(name)) == []
    assert not (LAB_ROOT / name).exists()


def test_demo_proves_every_step(name: str) -> None:
    result = nodeseal("lab", "demo", "--name", name, "-o", "json")
    report = json.loads(result.stdout)
    assert (report["failure"], result.returncode) == (None, 0)
    assert [step["step"] for step in report["steps"]] == list("abcdefgh")
    assert list_namespaces(prefix(name)) == []


@pytest.mark.parametrize("columns", [70, 95])
def test_demo_shows_connections_as_a_terminal_does(shared: Lab, columns: int) -> None:
    """Its lines are no longer than the demo's, though those of a pipe are."""
    scene = Scene(shared.plan)
    scene.lab = shared
    where = shared.plan.pod("pipeline")
    address = (str(where.named_address), PIPELINE_HTTP_PORT)
    with run_in(shared.plan.pod("shipper").netns, lambda: socket.create_connection(address, timeout=30)):
        lines = scene.connections_on_terminal("node1", columns).splitlines()
        in_a_pipe = nodeseal("connections", "--live", "--run-dir", str(shared.run_dirs["node1"])).stdout
    assert lines[0].split()[:3] == ["DIR", "SOURCE", "DESTINATION"]
    assert max(len(line) for line in lines) <= columns < max(len(line) for line in in_a_pipe.splitlines())
    assert "default/pipeline" in "".join(lines)


def test_demo_fails_loudly_when_enrolment_does_nothing(name: str) -> None:
    code = (
        f"import sys; sys.path.append({str(TESTS)!r}); from support.settings import lab_settings;"
        "from nodeseal_lab.lab import Lab; from nodeseal_lab.demo.run import run_demo;"
        f"Lab.enrol = lambda self, *pods: None; lab_settings().__enter__(); sys.exit(run_demo({name!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=child_environment()
    )
    failure = result.stdout.partition("FAILED in (c) Enrolment, live\n")[2]
    assert "check:    no card number on the wire" in failure
    assert "expected: 0 packets" in failure
    assert "seen:     shipper -> pipeline:8080, pipeline -> siem:9000" in failure
    assert result.returncode == 1
    assert list_namespaces(prefix(name)) == []


def test_demo_that_is_stopped_cleans_up(name: str) -> None:
    with subprocess.Popen(
        [*nodeseal_command(), "lab", "demo", "--name", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("(b)"):
                break
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert list_namespaces(prefix(name)) == []
    assert not (LAB_ROOT / name).exists()
