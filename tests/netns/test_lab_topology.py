"""The lab's network and programs on a real kernel, without agents: made, used, and gone without a trace."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.mesh.address import Address
from nodeseal_lab import lab as lab_module
from nodeseal_lab.errors import LabBusyError, LabError, LabExistsError
from nodeseal_lab.lab import Lab, take_down
from nodeseal_lab.namespaces import create_namespace, list_namespaces, run_in
from nodeseal_lab.plan import Plan, PodRequest, in_url, prefix
from nodeseal_lab.processes import child_environment, start_time

NAME = f"t{os.getpid()}"


@pytest.fixture
def root(lab_root: Path) -> Iterator[Path]:
    yield lab_root
    take_down(NAME, lab_root)


@pytest.fixture
def lab(root: Path) -> Lab:
    return Lab.up(Plan.build(NAME), with_agents=False, root=root)


@pytest.fixture(params=[False, True], ids=["ipv4", "ipv6"])
def either_lab(request: pytest.FixtureRequest, root: Path) -> Lab:
    """Without IPv6 and with; a pod's `named_address` is the one that is dialled."""
    return Lab.up(Plan.build(NAME, ipv6=request.param), with_agents=False, root=root)


def host_interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))  # noqa: PTH208 - names only


def answers(address: Address) -> bool:
    """Whether a port of the pod where nothing listens refuses us, which only the pod itself can do."""
    try:
        socket.create_connection((str(address), 1), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def post_a_line(lab: Lab) -> str:
    url = f"http://{at(lab, 'pipeline')}:8080/"
    return lab.run("shipper", ["curl", "-gs", "--max-time", "10", "--data", "one line", url]).stdout


def at(lab: Lab, pod: str) -> str:
    return in_url(lab.plan.pod(pod).named_address)


def test_shipper_reaches_pipeline_which_reaches_siem(either_lab: Lab) -> None:
    assert post_a_line(either_lab) == "siem: lines stored: 1\n"


def test_programs_log_the_address_that_they_see(either_lab: Lab) -> None:
    lab = either_lab
    post_a_line(lab)
    assert f" {at(lab, 'shipper')}:" in (lab.pod_directory("pipeline") / "access.log").read_text()
    assert f" {at(lab, 'pipeline')}:" in (lab.pod_directory("siem") / "access.log").read_text()


def test_programs_of_a_lab_with_ipv6_take_ipv4_as_well(root: Path) -> None:
    lab = Lab.up(Plan.build(NAME, ipv6=True), with_agents=False, root=root)
    url = f"http://{lab.plan.pod('pipeline').address}:8080/"
    assert lab.run("shipper", ["curl", "-s", "--max-time", "10", url]).stdout == "pipeline: ready\n"
    assert f" {lab.plan.pod('shipper').address}:" in (lab.pod_directory("pipeline") / "access.log").read_text()


def test_every_pod_reaches_every_other(root: Path) -> None:
    more = [PodRequest.parse("web:node3"), PodRequest.parse("db:node3:plain")]
    plan = Plan.build(NAME, nodes=3, more_pods=more, ipv6=True)
    Lab.up(plan, with_agents=False, with_apps=False, root=root)
    for pod in plan.pods:
        for address in (address for other in plan.pods for address in other.addresses):
            assert run_in(pod.netns, lambda address=address: answers(address)), f"{pod.name} -> {address}"  # type: ignore[misc]


def test_lab_without_ipv6_has_none_in_the_kernel_either(lab: Lab) -> None:
    for netns in (lab.plan.nodes[0].netns, lab.plan.pods[0].netns):
        assert run_in(netns, lambda: Path("/proc/thread-self/net/if_inet6").read_text()) == ""


def test_reverse_path_filtering_is_strict(lab: Lab) -> None:
    for netns in (lab.plan.nodes[0].netns, lab.plan.pods[0].netns):
        assert run_in(netns, lambda: Path("/proc/sys/net/ipv4/conf/eth0/rp_filter").read_text()) == "1\n"


def test_host_sees_no_interface_of_the_lab(root: Path) -> None:
    before = host_interfaces()
    Lab.up(Plan.build(NAME), with_agents=False, with_apps=False, root=root)
    assert host_interfaces() == before


def test_down_leaves_nothing(lab: Lab, root: Path) -> None:
    pids = [record.pid for record in lab.processes.records() if record.pid is not None]
    assert pids
    report = take_down(NAME, root)
    assert report.failures == ()
    assert list_namespaces(prefix(NAME)) == []
    assert [pid for pid in pids if start_time(pid) is not None] == []
    assert not root.exists()


def test_netns_directory_that_the_lab_made_goes_with_it(root: Path) -> None:
    # A mount namespace of its own, in which /run is empty, as after boot: the host's /run/netns may be in use.
    code = (
        "from pathlib import Path; from nodeseal_lab.lab import Lab, take_down; from nodeseal_lab.plan import Plan;"
        f"name, root = {NAME!r}, Path('/run/labs');"
        "Lab.up(Plan.build(name), with_agents=False, with_apps=False, root=root);"
        "assert Path('/run/netns').is_dir();"
        "take_down(name, root);"
        "print(sorted(path.name for path in Path('/run').iterdir()), 'netns' in Path('/proc/self/mounts').read_text())"
    )
    prepare = 'umount -l /run/netns 2>/dev/null; mount -t tmpfs none /run && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", prepare, "sh", sys.executable, "-c", code]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env=child_environment())
    assert (result.stdout, result.stderr) == ("[] False\n", "")


def test_another_lab_that_comes_up_as_the_last_goes_keeps_its_files(
    lab: Lab, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / lab_module._NETNS_DIR_MADE).touch()
    monkeypatch.setattr(lab_module, "remove_netns_directory", (root / "other").mkdir)
    assert take_down(NAME, root).failures == ()
    assert sorted(path.name for path in root.iterdir()) == [lab_module._NETNS_DIR_MADE, "other"]


def test_down_twice_is_fine(lab: Lab, root: Path) -> None:
    take_down(NAME, root)
    report = take_down(NAME, root)
    assert (report.namespaces, report.processes, report.failures) == ((), (), ())


def test_down_works_when_the_state_file_is_gone(lab: Lab, root: Path) -> None:
    (lab.directory / "lab.json").unlink()
    take_down(NAME, root)
    assert list_namespaces(prefix(NAME)) == []
    assert not root.exists()


def test_down_works_when_the_whole_directory_is_gone(root: Path) -> None:
    lab = Lab.up(Plan.build(NAME), with_agents=False, with_apps=False, root=root)
    (lab.directory / "lab.json").unlink()
    for path in sorted(lab.directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    lab.directory.rmdir()
    assert take_down(NAME, root).failures == ()
    assert list_namespaces(prefix(NAME)) == []


def test_up_that_fails_takes_everything_down_again(root: Path) -> None:
    plan = Plan.build(NAME)
    create_namespace(f"{prefix(NAME)}other")
    with pytest.raises(LabExistsError, match="are left"):
        Lab.up(plan, with_agents=False, root=root)
    take_down(NAME, root)
    # A program whose port is taken is a fault in the middle of `up`.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nodeseal_lab.lab.APPS", Path("/nonexistent"))
        patch.setattr("nodeseal_lab.agents.READY_SECONDS", 0.5)
        with pytest.raises(LabError, match=r"nothing listens on port 9000 in pod siem: .*No such file"):
            Lab.up(plan, with_agents=False, root=root)
    assert list_namespaces(prefix(NAME)) == []
    assert not root.exists()


def test_up_that_is_killed_is_taken_down(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nodeseal_lab.lab import Lab; from nodeseal_lab.plan import Plan;"
        "Lab._wait_for_apps = lambda self: (print('made', flush=True), sys.stdin.read());"
        f"Lab.up(Plan.build({NAME!r}), with_agents=False, root=Path({str(root)!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"made\n"
        child.send_signal(signal.SIGKILL)
    pids = [record.pid for record in Lab.open(NAME, root).processes.records() if record.pid is not None]
    assert len(pids) == 2
    assert take_down(NAME, root).failures == ()
    assert [pid for pid in pids if start_time(pid) is not None] == []
    assert list_namespaces(prefix(NAME)) == []


def test_second_lab_of_the_name_is_refused_and_the_first_lives_on(lab: Lab, root: Path) -> None:
    with pytest.raises(LabExistsError, match="is up already"):
        Lab.up(Plan.build(NAME), with_agents=False, root=root)
    assert set(list_namespaces(prefix(NAME))) == set(lab.plan.namespaces)


def test_two_commands_do_not_change_one_lab_at_a_time(lab: Lab, root: Path) -> None:
    fd = os.open(lab.directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(LabBusyError):
            take_down(NAME, root)
    finally:
        os.close(fd)


def test_process_in_a_pod_that_the_lab_did_not_start_is_spared(lab: Lab, root: Path) -> None:
    argv = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with run_in(lab.plan.pod("siem").netns, lambda: subprocess.Popen(argv, stdin=subprocess.PIPE)) as own:
        take_down(NAME, root)
        assert own.poll() is None
