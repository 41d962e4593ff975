"""`nodeseal lab exec` on a real kernel: names, exit status, and what `down` does with what was left running."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal_lab.lab import Lab, take_down
from nodeseal_lab.plan import Plan
from nodeseal_lab.processes import child_environment, start_time

NAME = f"e{os.getpid()}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("exec") / "labs"
    yield Lab.up(Plan.build(NAME), with_agents=False, root=root)
    take_down(NAME, root)


def program(lab: Lab, pod: str, *argv: str) -> list[str]:
    """A Python process that becomes the command, as `nodeseal lab exec` does."""
    code = (
        "import sys; from pathlib import Path;"
        "from nodeseal_lab.lab import Lab; from nodeseal_lab.pods import exec_in_pod;"
        f"exec_in_pod(Lab.open({NAME!r}, Path({str(lab.directory.parent)!r})), {pod!r}, sys.argv[1:])"
    )
    return [sys.executable, "-c", code, *argv]


def execute(lab: Lab, pod: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(lab, pod, *argv), capture_output=True, text=True, timeout=30, check=False, env=child_environment()
    )


def test_pod_names_resolve(lab: Lab) -> None:
    result = execute(lab, "shipper", "curl", "-s", "--max-time", "10", "http://pipeline:8080/")
    assert result.stdout == "pipeline: ready\n"


def test_service_names_resolve(lab: Lab) -> None:
    result = execute(lab, "shipper", "getent", "hosts", "pipeline.svc")
    assert result.stdout.split() == ["10.77.200.1", "pipeline.svc"]


def test_host_keeps_its_own_names(lab: Lab) -> None:
    before = Path("/etc/hosts").read_text()
    execute(lab, "shipper", "true")
    assert Path("/etc/hosts").read_text() == before


def test_command_sees_the_pods_addresses_only(lab: Lab) -> None:
    result = execute(lab, "siem", sys.executable, "-c", "import socket; print([n for _, n in socket.if_nameindex()])")
    assert result.stdout == "['lo', 'eth0']\n"


@pytest.mark.parametrize("status", [0, 3, 127])
def test_exit_status_is_the_commands_own(lab: Lab, status: int) -> None:
    assert execute(lab, "shipper", "sh", "-c", f"exit {status}").returncode == status


def test_arguments_arrive_unchanged(lab: Lab) -> None:
    arguments = ["a b", "--", "$HOME", "-o", "json", ""]
    result = execute(lab, "shipper", sys.executable, "-c", "import sys; print(sys.argv[1:])", *arguments)
    assert result.stdout == f"{arguments}\n"


def test_standard_input_is_the_commands(lab: Lab) -> None:
    result = subprocess.run(
        program(lab, "shipper", "cat"),
        input="hello",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=child_environment(),
    )
    assert result.stdout == "hello"


def test_command_holds_no_mount_of_the_lab(lab: Lab) -> None:
    result = execute(lab, "shipper", "cat", "/proc/self/mountinfo")
    points = [line.split()[4] for line in result.stdout.splitlines()]
    assert [point for point in points if point.startswith(("/run/netns/", f"{lab.directory}/"))] == []


def test_command_left_running_is_ended_by_down(tmp_path: Path) -> None:
    name, root = f"{NAME}x", tmp_path / "labs"
    try:
        lab = Lab.up(Plan.build(name), with_agents=False, with_apps=False, root=root)
        argv = [argument.replace(repr(NAME), repr(name)) for argument in program(lab, "shipper", "cat")]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"x")
            child.stdin.flush()
            assert child.stdout.read(1) == b"x"
            take_down(name, root)
            assert start_time(child.pid) is None
    finally:
        take_down(name, root)
