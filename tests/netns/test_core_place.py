"""Cores in cgroups of their own and from copies of their files: they outlive the container of their agent."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.cores import place
from nodeseal.linux.cgroup_hierarchies import PROCESSES, Hierarchy, children, hierarchies
from nodeseal.linux.mounts import mounts
from nodeseal_lab import agents
from nodeseal_lab.processes import start_time
from support.connection import echoes
from support.container_root import ContainerRoot
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Lines, Programs
from support.settings import add_settings

NODE = "node1"
MEMORY = 512 << 20
CARD = b"card=4111 1111 1111 1111;"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[RunningLab]:
    settings = {"own_cgroup": True, "memory": "512MiB", "cpus": 1.5, "image_directory": str(images / "image")}
    with running_lab(tmp_path_factory.mktemp("place"), settings={"core": settings, "hand_over": True}) as lab:
        yield lab
        run_dirs = list(lab.lab.run_dirs.values())
    # The lab was taken down by `nodeseal cleanup`.
    assert [children(place.parent_of(run_dir)) for run_dir in run_dirs] == [set()] * len(run_dirs)
    assert list(images.iterdir()) == []


def cgroups_of(pid: int) -> set[str]:
    """Its path in each hierarchy."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {line.split(":", 2)[2] for line in lines}


def generation(lab: RunningLab) -> int:
    number: int = wait_for(lambda: lab.status(NODE)["core"]["generation"], "a core runs")
    return number


def test_core_is_in_its_own_cgroup_in_every_hierarchy(lab: RunningLab) -> None:
    row = lab.status(NODE)["core"]
    assert cgroups_of(row["pid"]) == {row["place"]["cgroup"]}
    assert row["place"]["cgroup"].endswith(f"/core-{row['generation']}")
    assert row["place"]["memory"] > 1 << 20
    assert row["place"]["cpu_seconds"] > 0
    assert (row["place"]["memory_limit"], row["place"]["cpu_limit"]) == (MEMORY, 1.5)
    other = lab.status("node2")["core"]["place"]["cgroup"]
    assert other != row["place"]["cgroup"]
    assert cgroups_of(lab.agent_pid(NODE)).isdisjoint({row["place"]["cgroup"], other})


def test_core_sees_its_copy_and_its_run_directory_alone(lab: RunningLab, images: Path) -> None:
    pid = lab.core_pid(NODE)
    (copy,) = (path for path in (images / "image").iterdir() if path.is_dir())
    found = {str(mount.point): mount.root for kind in ("ext4", "xfs", "btrfs", "overlay", "tmpfs", "proc")
             for mount in mounts(kind, str(pid))}  # fmt: skip
    assert {"/", "/proc", "/dev", str(lab.run_dir(NODE))} <= set(found)
    assert str(copy).endswith(found["/"]), "its root is a part of the file system that has the copy"
    assert sorted(path.name for path in Path(f"/proc/{pid}/root/dev").iterdir()) == [
        "full",
        "null",
        "random",
        "urandom",
        "zero",
    ]
    assert not Path(f"/proc/{pid}/root/root").exists()
    with pytest.raises(OSError, match="Read-only"):
        Path(f"/proc/{pid}/root/etc/new").touch()


def test_cgroup_goes_with_its_core(lab: RunningLab, programs: Programs) -> None:
    lines = Lines(programs, "shipper", programs.serve("pipeline").address)
    first = generation(lab)
    parent = place.parent_of(lab.run_dir(NODE))
    assert lab.command("upgrade-core", "--run-dir", str(lab.run_dir(NODE))).returncode == 0
    assert f"core-{first}" in children(parent), "the core before still carries what it began"
    (older,) = lab.status(NODE)["older_cores"]
    assert older["place"]["cgroup"] == f"{parent}/core-{first}"
    assert lines.finish() > 0
    lines.connection.close()
    wait_for(lambda: children(parent) == {f"core-{first + 1}"}, "the cgroup of the core before is gone")
    lab.kill_core(NODE)
    wait_for(lambda: children(parent) == {f"core-{first + 2}"}, "so is that of one that was killed")


def test_running_core_gets_the_limits_of_a_new_configuration(lab: RunningLab) -> None:
    core = lab.core_pid(NODE)
    before = add_core_settings(lab.run_dir(NODE) / "agent.yaml", {"own_cgroup": True, "memory": "1GiB"})
    lab.restart_agent(NODE)
    row = lab.status(NODE)["core"]
    assert (row["pid"], row["place"]["memory_limit"], row["place"]["cpu_limit"]) == (core, 1 << 30, None)
    (lab.run_dir(NODE) / "agent.yaml").write_text(before)
    lab.restart_agent(NODE)
    row = lab.status(NODE)["core"]
    assert (row["pid"], row["place"]["memory_limit"], row["place"]["cpu_limit"]) == (core, MEMORY, 1.5)


def test_core_that_needs_more_memory_says_so(lab: RunningLab) -> None:
    core = lab.core_pid(NODE)
    cgroup = place.cgroup_of(lab.run_dir(NODE), generation(lab))
    usage = cgroup.usage()
    assert usage is not None
    assert usage.memory is not None
    # Somebody else in its cgroup needs the memory, and it is the first to go.
    cgroup.limit(memory=usage.memory + (32 << 20))
    Path(f"/proc/{core}/oom_score_adj").write_text("1000")
    (root,) = (one.root for one in hierarchies() if "memory" in one.controllers or has_memory(one))
    joined = root / cgroup.path.lstrip("/") / PROCESSES
    program = "import sys; open(sys.argv[1], 'w').write('0'); kept = [bytearray(b'x') * (1 << 20) for _ in range(4096)]"
    assert subprocess.run([sys.executable, "-c", program, str(joined)], check=False).returncode == -signal.SIGKILL
    wait_for(lambda: lab.core_pids(NODE) not in ([], [core]), "another core runs")
    assert "it needed more memory than 'core.memory' lets it have" in (lab.run_dir(NODE) / "agent.log").read_text()
    generation(lab)
    said = [problem for problem in lab.status(NODE)["problems"] if problem["word"] == "core-crashed"]
    assert said[0]["text"].endswith(", 1 of these for want of memory")


def has_memory(hierarchy: Hierarchy) -> bool:
    return hierarchy.unified and "memory" in (hierarchy.root / "cgroup.controllers").read_text().split()


def test_one_that_died_without_an_agent_is_tidied_by_the_next(lab: RunningLab) -> None:
    first = generation(lab)
    parent = place.parent_of(lab.run_dir(NODE))
    lab.kill_agent(NODE)
    lab.kill_core(NODE)
    lab.start_agent(NODE)
    wait_for(lambda: children(parent) == {f"core-{first + 1}"}, "its cgroup is gone")


def test_core_outlives_the_container_of_its_agent(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    node = lab.lab.plan.node(NODE)
    # Shared with the machine: what a DaemonSet mounts of its node.
    image = tmp_path / "image"
    image.mkdir(mode=0o700)
    shared = [lab.directory, lab.lab.mesh, image]
    config = lab.run_dir(NODE) / "agent.yaml"
    settings = {"own_cgroup": True, "image_directory": str(image)}

    def start(name: str) -> tuple[ContainerRoot, int]:
        root = ContainerRoot(tmp_path / name, name, shared)
        script = Path(agents.AGENT_COMMAND[1])
        argv = root.command(str(script), *agents.AGENT_COMMAND[2:], "--config", str(config))
        record = lab.lab.processes.start(
            f"agent {name}", argv, netns=node.netns, output=lab.run_dir(NODE) / "agent.log"
        )
        assert record.pid is not None
        wait_for(lambda: lab.agent_runs(NODE) and lab.agent_pid(NODE) == record.pid, "it is active")
        wait_for(lambda: lab.enrolled("shipper"), "shipper is enrolled")
        return root, record.pid

    before = add_core_settings(config, settings)
    server = programs.serve("pipeline")
    try:
        lab.kill_agent(NODE, signal.SIGTERM)
        lab.kill_core(NODE)
        first, agent = start("first")
        core = lab.core_pid(NODE)
        assert core not in first.processes()
        assert agent in first.processes()
        lines = Lines(programs, "shipper", server.address)
        lines.goes_on()
        first.take_away()
        assert start_time(agent) is None
        assert not (tmp_path / "first").exists()
        lines.goes_on()
        assert imports(core, "nodeseal.splice.control_server", "hashlib", "asyncio")
        with programs.sniff() as wire:
            assert echoes(programs.dial("shipper", server.address), CARD)
            assert not wire.carries(CARD)
        # Another image: the core is adopted, and replaced only because it is another one.
        second, _agent = start("second")
        assert lab.core_pid(NODE) == core
        lines.goes_on()
        assert lab.command("upgrade-core", "--run-dir", str(lab.run_dir(NODE))).returncode == 0
        assert lab.core_pid(NODE) != core
        lines.goes_on()
        second.take_away()
        assert echoes(programs.dial("shipper", server.address), CARD)
        assert lines.finish() > 0
    finally:
        config.write_text(before)
        lab.start_agents()


def imports(core: int, *modules: str) -> bool:
    """Whether Python finds the modules where a core finds its own."""
    environment = dict(
        text.split("=", 1) for text in Path(f"/proc/{core}/environ").read_text().split("\0") if "=" in text
    )
    program = Path(f"/proc/{core}/cmdline").read_text().split("\0")[0]
    inside = ["nsenter", f"--target={core}", "--mount", "--root", "--wd=/", program, "-S", "-c"]
    done = subprocess.run([*inside, f"import {', '.join(modules)}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return True


def add_core_settings(config: Path, settings: dict[str, object]) -> str:
    """What was in the file before."""
    before = config.read_text()
    add_settings(config, {"core": settings})
    return before


def test_noexec_is_said_in_one_line(lab: RunningLab, tmp_path: Path) -> None:
    directory = tmp_path / "noexec"
    directory.mkdir()
    config = tmp_path / "agent.yaml"
    config.write_text((lab.run_dir(NODE) / "agent.yaml").read_text())
    add_settings(config, {"core": {"image_directory": str(directory)}})
    done = lab.command(
        "check",
        "--config",
        str(config),
        prefix=["unshare", "--mount", "sh", "-ec", f'mount -t tmpfs -o noexec none {directory}; exec "$@"', "sh"],
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"core: image_directory cannot be used: {directory} is mounted noexec" in line
