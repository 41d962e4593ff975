"""An agent that cannot start says so in one line, exits with a status that is not zero, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nodeseal.authority.creation import init_authority
from nodeseal.linux.cgroups import find_cgroup
from nodeseal.linux.mounts import mount_points
from nodeseal_lab.processes import child_environment
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.options import agent_settings
from support.patience import wait_for
from support.process import end_process, nodeseal
from support.programs import Programs

TRUST_DOMAIN = "example.org"
# Not root, but able to read a checkout that lies in root's home.
NOBODY = (
    *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
# CAP_SYS_ADMIN holds all that CAP_BPF and CAP_PERFMON do, see capabilities(7).
NO_BPF = "-bpf,-sys_admin"


@dataclass
class Site:
    """What an agent needs, in a directory that everybody may read. One workload is wanted: something could be done."""

    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run_dir = self.directory / "run"
        self.mesh = self.directory / "mesh"
        self.ca = self.directory / "ca"
        self.config = self.directory / "agent.yaml"
        self.mesh.mkdir()
        workload = {"name": "web", "node": "node1", "address": "10.99.0.1", "netns": "nodeseal-none", "enrolled": True}
        mesh = {"trust_domain": TRUST_DOMAIN, "workloads": [workload]}
        (self.mesh / "mesh.yaml").write_text(yaml.safe_dump(mesh))
        init_authority(self.ca, trust_domain=TRUST_DOMAIN, now=datetime.now(UTC))
        names = {"node": "node1", "mesh": str(self.mesh), "ca": str(self.ca), "run_dir": str(self.run_dir)}
        self.config.write_text(yaml.safe_dump(names | agent_settings()))

    def configure(self, **settings: Any) -> None:
        """Changes fields of the configuration."""
        self.config.write_text(yaml.safe_dump(yaml.safe_load(self.config.read_text()) | settings))

    def start(self, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs the agent, which must end by itself."""
        return nodeseal("agent", "--config", str(self.config), **options)

    def traces(self) -> list[str]:
        """What could be left: files, mounts, processes."""
        files = [str(path) for path in self.directory.rglob("*")]
        points = [str(path) for path in mount_points("bpf") if path.is_relative_to(self.directory)]
        return sorted([*files, *points, *self.processes()])

    def processes(self) -> list[str]:
        """The processes that name the directory."""
        lines = [f"{one.pid} {' '.join(one.info['cmdline'] or ())}" for one in psutil.process_iter(["cmdline"])]
        return [line for line in lines if str(self.directory) in line]


@pytest.fixture
def site() -> Iterator[Site]:
    """Not below pytest's own directory: that one is root's alone."""
    directory = Path(tempfile.mkdtemp(prefix="nodeseal-site-"))
    directory.chmod(0o755)
    yield Site(directory)
    shutil.rmtree(directory)


def assert_refuses(site: Site, *texts: str, **options: Any) -> None:
    """It ends with one line on standard error that holds every one of the texts, and nothing has changed."""
    before = site.traces()
    result = site.start(**options)
    assert result.returncode == 1
    assert result.stdout == ""
    said = [line for line in result.stderr.splitlines() if not is_log(line)]
    assert len(said) == 1, result.stderr
    assert said[0].startswith("nodeseal: ")
    for text in texts:
        assert text in said[0]
    assert site.traces() == before


def is_log(line: str) -> bool:
    """Whether it is a line of the agent's log, which begins with the date."""
    return line[:4].isdigit() and line[4:5] == "-"


def test_not_root(site: Site) -> None:
    assert_refuses(site, "root", prefix=NOBODY)


def test_cleanup_not_root(site: Site) -> None:
    site.run_dir.mkdir()
    result = nodeseal(
        "cleanup",
        "--run-dir",
        str(site.run_dir),
        prefix=NOBODY,
    )
    assert result.returncode == 1
    assert result.stderr == "nodeseal: cleanup needs root's privileges: run it as root\n"


@pytest.mark.ebpf_only("rules need no CAP_BPF")
def test_no_cap_bpf(site: Site) -> None:
    assert_refuses(site, "CAP_BPF", prefix=("setpriv", f"--bounding-set={NO_BPF}", f"--inh-caps={NO_BPF}"))


def test_no_cap_net_admin(site: Site) -> None:
    drop = "-net_admin,-sys_admin"
    assert_refuses(site, "CAP_NET_ADMIN", prefix=("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"))


def test_bcc_missing(site: Site, tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('No module named bcc')\n")
    site.configure(capture="ebpf")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert_refuses(site, "bcc", "apt-get install python3-bpfcc", env={"PYTHONPATH": path})


def test_cgroup2_absent(site: Site, tmp_path: Path) -> None:
    site.configure(capture="ebpf", cgroup=str(tmp_path))
    assert_refuses(site, str(tmp_path), "cgroup")


def test_cgroup_that_is_not_there(site: Site) -> None:
    site.configure(capture="ebpf", cgroup="/nodeseal-none/cgroup")
    assert_refuses(site, "/nodeseal-none/cgroup")


def test_no_backend_at_all(site: Site) -> None:
    """`auto` tries both, and says of both why not."""
    site.configure(capture="auto")
    hide = 'umount --all --lazy --types cgroup2 && mount -t tmpfs none /usr/sbin && exec "$@"'
    assert_refuses(
        site,
        "no capture backend can be used here: ebpf: no cgroup v2 tree is mounted",
        "iptables: iptables-restore is not installed: apt-get install iptables",
        prefix=("unshare", "--mount", "sh", "-c", hide, "sh"),
    )


@pytest.mark.parametrize("capture", ["auto", "ebpf", "iptables"])
def test_cgroup_that_was_asked_for_is_not_replaced(site: Site, capture: str) -> None:
    """As on a host with cgroup v1 beside v2, where /sys/fs/cgroup is neither: not even by the other backend."""
    site.configure(capture=capture, cgroup=str(site.mesh))
    assert_refuses(site, "cgroup: ", f"{site.mesh} is not a cgroup v2 directory", str(find_cgroup()))


def test_cgroup_below_the_root_captures_a_part_only(site: Site) -> None:
    inner = find_cgroup() / f"nodeseal-test-{os.getpid()}"
    inner.mkdir()
    try:
        site.configure(cgroup=str(inner))
        assert_refuses(site, f"{inner} is a part of the cgroup v2 tree", f"name its root, {find_cgroup()}")
    finally:
        inner.rmdir()


def test_congestion_control_that_the_kernel_lacks(site: Site) -> None:
    """The core would not start with it, and every connection fail."""
    site.configure(congestion_control="nosuch")
    assert_refuses(site, "congestion_control: nosuch is not available, only ")


def no_ca(site: Site) -> None:
    shutil.rmtree(site.ca)


def expired_ca(site: Site) -> None:
    shutil.rmtree(site.ca)
    init_authority(site.ca, trust_domain=TRUST_DOMAIN, now=datetime.now(UTC) - timedelta(days=500))


def no_mesh(site: Site) -> None:
    shutil.rmtree(site.mesh)


def two_at_once(site: Site) -> None:
    no_mesh(site)
    no_ca(site)


def no_run_dir(site: Site) -> None:
    site.run_dir.write_text("a file")


def damaged_journal(site: Site) -> None:
    site.run_dir.mkdir(mode=0o700)
    (site.run_dir / "capture.json").write_text("{")


def node_of_another(site: Site) -> None:
    (site.mesh / "enrolled").mkdir()
    other = site.directory / "other"
    other.mkdir()
    (other / "capture.json").write_text("{}")
    (site.mesh / "enrolled" / ".node1.claim").write_text(f"{other}\n")


def wrong_field(site: Site) -> None:
    site.configure(workers=0, settle="never")


def wrong_congestion_control(site: Site) -> None:
    site.configure(congestion_control="nosuch")


def wrong_cgroup(site: Site) -> None:
    site.configure(cgroup=str(site.mesh))


@pytest.mark.parametrize(
    ("spoil", "count"),
    [
        *((one, 1) for one in (no_ca, expired_ca, no_mesh, no_run_dir, damaged_journal, node_of_another)),
        *((wrong_congestion_control, 1), (wrong_cgroup, 1), (wrong_field, 2), (two_at_once, 2)),
    ],
)
def test_check_refuses_what_the_agent_refuses(site: Site, spoil: Callable[[Site], None], count: int) -> None:
    """In the same words, each with its line in the file where it is there."""
    spoil(site)
    before = site.traces()
    check, agent = nodeseal("check", "--config", str(site.config)), site.start()
    assert site.traces() == before
    assert (check.returncode, check.stdout, agent.returncode) == (1, "", 1)
    assert check.stderr == agent.stderr
    lines = check.stderr.splitlines()
    assert len(lines) == count
    assert all(line.removeprefix("nodeseal: ").startswith(f"{site.config}:") for line in lines)


def test_ca_directory_missing(site: Site) -> None:
    shutil.rmtree(site.ca)
    assert_refuses(site, str(site.ca), "nodeseal ca init")


@pytest.mark.parametrize("name", ["root.pem", "intermediate.pem", "intermediate.key"])
def test_ca_file_missing(site: Site, name: str) -> None:
    (site.ca / name).unlink()
    assert_refuses(site, str(site.ca / name))


@pytest.mark.parametrize("name", ["root.pem", "intermediate.pem", "intermediate.key"])
def test_ca_file_that_holds_something_else(site: Site, name: str) -> None:
    (site.ca / name).write_text("this is no PEM\n")
    assert_refuses(site, str(site.ca / name))


def test_ca_file_that_may_not_be_read(site: Site) -> None:
    os.chown(site.ca / "intermediate.key", 65534, 65534)
    drop = "-dac_override,-dac_read_search"
    assert_refuses(
        site,
        str(site.ca / "intermediate.key"),
        prefix=("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"),
    )


def test_ca_expired(site: Site) -> None:
    shutil.rmtree(site.ca)
    past = datetime.now(UTC) - timedelta(days=500)
    init_authority(site.ca, trust_domain=TRUST_DOMAIN, now=past)  # the intermediate lives for one year
    assert_refuses(site, str(site.ca / "intermediate.pem"), "expired")


def test_ca_not_valid_yet(site: Site) -> None:
    shutil.rmtree(site.ca)
    init_authority(site.ca, trust_domain=TRUST_DOMAIN, now=datetime.now(UTC) + timedelta(days=5))
    assert_refuses(site, str(site.ca / "intermediate.pem"))


def test_key_of_another_ca(site: Site, tmp_path: Path) -> None:
    init_authority(tmp_path / "other", trust_domain=TRUST_DOMAIN, now=datetime.now(UTC))
    shutil.copy(tmp_path / "other" / "intermediate.key", site.ca / "intermediate.key")
    assert_refuses(site, str(site.ca / "intermediate.key"))


def test_mesh_directory_missing(site: Site) -> None:
    shutil.rmtree(site.mesh)
    assert_refuses(site, str(site.mesh))


def test_run_directory_that_cannot_be_made(site: Site) -> None:
    (site.directory / "file").write_text("")
    site.configure(run_dir=str(site.directory / "file" / "run"))
    assert_refuses(site, str(site.directory / "file" / "run"))


def test_configuration_missing(site: Site) -> None:
    site.config.unlink()
    assert_refuses(site, str(site.config))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"workers": "many"}, "workers: expected a number of threads from 1 to 64, found"),
        ({"certificate_lifetime": "soon"}, "certificate_lifetime: expected a duration such as 30s"),
        ({"setle": "2s"}, "setle: "),
        ({"node": None}, "node: "),
    ],
    ids=["type", "duration", "unknown-key", "required"],
)
def test_bad_configuration_names_file_line_and_field(site: Site, settings: dict[str, Any], text: str) -> None:
    site.configure(**settings)
    (name,) = settings
    line = 1 + [text.partition(":")[0] for text in site.config.read_text().splitlines()].index(name)
    assert_refuses(site, f"{site.config}:{line}: ", text)


def test_configuration_with_many_problems_names_each(site: Site) -> None:
    site.configure(workers=0, settle="never")
    before = site.traces()
    result = site.start()
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 2
    assert "workers: " in result.stderr
    assert "settle: " in result.stderr
    assert site.traces() == before


# ---- a second agent on the node


def test_second_agent_for_the_same_directory(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    pid, files = lab.agent_pid("node1"), sorted(lab.run_dir("node1").iterdir())
    result = nodeseal("agent", "--config", str(lab.run_dir("node1") / "agent.yaml"))
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line == f"nodeseal: another agent (pid {pid}) runs for {lab.run_dir('node1')}; stop it first"
    assert sorted(lab.run_dir("node1").iterdir()) == files
    assert lab.agent_pid("node1") == pid
    assert lab.enrolled("shipper", "siem")
    assert echoes(client)
    assert echoes(programs.dial("shipper", server.address))


def test_second_agent_for_the_same_node_with_another_directory(tmp_path: Path, lab_root: Path) -> None:
    """Two agents of one node would fight for its workloads and overwrite each other's publication."""
    # A lab of its own: were the second agent to run, it would disturb the first.
    with running_lab(lab_root) as lab, Programs(lab) as programs:
        server = programs.serve("pipeline")
        client = programs.dial("shipper", server.address)
        assert echoes(client)
        publication = lab.lab.mesh / "enrolled" / "node1.yaml"
        before = publication.read_text()
        config = tmp_path / "agent.yaml"
        first = yaml.safe_load((lab.run_dir("node1") / "agent.yaml").read_text())
        config.write_text(yaml.safe_dump(first | {"run_dir": str(tmp_path / "run")}))
        process = subprocess.Popen(
            [sys.executable, "-m", "nodeseal", "agent", "--config", str(config)],
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )
        try:
            wait_for(
                lambda: process.poll() is not None or publication.read_text() != before,
                "the second agent refuses, or takes the first one's place",
            )
            assert publication.read_text() == before
            _, errors = process.communicate(timeout=30)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
            nodeseal("cleanup", "--run-dir", str(tmp_path / "run"))
        assert process.returncode == 1
        said = [line for line in errors.splitlines() if not is_log(line)]
        assert len(said) == 1
        assert "node1" in said[0]
        assert not (tmp_path / "run").exists()
        assert publication.read_text() == before
        assert echoes(client)
        assert echoes(programs.dial("shipper", server.address))


def test_agent_that_is_told_to_go_leaves_with_status_zero(site: Site) -> None:
    """What the refusals above are to be compared with: the same site, when nothing is wrong."""
    log = site.directory / "agent.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "nodeseal", "agent", "--config", str(site.config)],
            stdout=output,
            stderr=output,
            env=child_environment(),
        )
    try:
        wait_for(lambda: "agent is ready" in log.read_text() or process.poll() is not None, "the agent is ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            end_process(process.pid)
        assert nodeseal("cleanup", "--run-dir", str(site.run_dir)).returncode == 0
    assert site.processes() == []
    assert not site.run_dir.exists()
