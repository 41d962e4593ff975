"""The field `host` of a workload: what it says, and what is said about what is wrong with it."""

from pathlib import Path

import pytest

from nodeseal.mesh.exclusions import PortRange
from nodeseal.mesh.host import OWN_NAMESPACE, HostPlace
from nodeseal.mesh.model import Workload, WorkloadName
from nodeseal.sources.directory.source import load
from nodeseal.sources.source import MeshStateError

HEAD = "trust_domain: example.org\nworkloads:\n"


def item(name: str, host: str, more: str = "", *, node: str = "node1", address: str = "10.0.0.1") -> str:
    return f"- {{name: {name}, node: {node}, address: {address}, host: {host}{more}}}\n"


def read(directory: Path, *items: str) -> dict[str, Workload]:
    (directory / "m.yaml").write_text(HEAD + "".join(items))
    return {key.name: workload for key, workload in load(directory).workloads.items()}


def complaint(directory: Path, *items: str) -> str:
    with pytest.raises(MeshStateError) as caught:
        read(directory, *items)
    (problem,) = caught.value.problems
    return str(problem)


def test_a_workload_has_a_namespace_of_its_own_by_itself(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(HEAD + "- {name: a, node: node1, address: 10.0.0.1, netns: a}\n")
    workload = load(tmp_path).workloads[WorkloadName("default", "a")]
    assert (workload.host, workload.netns) == (None, "a")


def test_a_process_lives_in_the_agents_own_namespace(tmp_path: Path) -> None:
    workload = read(tmp_path, item("a", '{cgroup: /system.slice/vector.service, ports: [9000, "9100-9110"]}'))["a"]
    place = HostPlace("/system.slice/vector.service", (PortRange(9000, 9000), PortRange(9100, 9110)))
    assert (workload.host, workload.netns) == (place, OWN_NAMESPACE)


def test_a_process_may_have_no_port(tmp_path: Path) -> None:
    assert read(tmp_path, item("a", "{cgroup: /a.slice}"))["a"].host == HostPlace("/a.slice")


def test_processes_of_a_node_share_its_address(tmp_path: Path) -> None:
    workloads = read(tmp_path, item("a", "{cgroup: /a, ports: [1]}"), item("b", "{cgroup: /b, ports: [2]}"))
    assert workloads["a"].address == workloads["b"].address


PATH = "expected a path from the root of the cgroup v2 tree, such as /system.slice/vector.service, found "


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("/a", "workloads[0].host: expected a mapping, found '/a'"),
        ("{ports: [1]}", f"workloads[0].host.cgroup: {PATH}nothing"),
        ("{cgroup: /}", f"workloads[0].host.cgroup: {PATH}'/'"),
        ("{cgroup: a}", f"workloads[0].host.cgroup: {PATH}'a'"),
        ("{cgroup: /a/../b}", f"workloads[0].host.cgroup: {PATH}'/a/../b'"),
        ("{cgroup: /a//b}", f"workloads[0].host.cgroup: {PATH}'/a//b'"),
        ("{cgroup: /a/}", f"workloads[0].host.cgroup: {PATH}'/a/'"),
        ("{cgroup: /a, ports: [15000-15010]}", "not the mesh's own (15001, 15006, 15008), found 15001"),
        ("{cgroup: /a, ports: [0]}", "workloads[0].host.ports[0]: expected a port from 1 to 65535"),
        ("{cgroup: /a, port: 1}", "expected 'ports', found the unknown field 'port'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, host: str, message: str) -> None:
    assert message in complaint(tmp_path, item("a", host))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (", netns: a", "workloads[0].netns: expected the node's own namespace, as 'host' is given, found 'netns' as"),
        (", exclude: {}", "workloads[0].exclude: expected nothing excluded, as 'host' is given"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(tmp_path: Path, more: str, message: str) -> None:
    assert message in complaint(tmp_path, item("a", "{cgroup: /a}", more))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (item("b", "{cgroup: /b, ports: [80-90]}"), "[1].host.ports: expected a port used once, found 85 of 10.0.0.1"),
        (item("b", "{cgroup: /b}", node="node2"), "workloads[1].address: expected an address used once"),
        ("- {name: b, node: node1, address: 10.0.0.1}\n", "workloads[1].address: expected an address used once"),
    ],
)
def test_what_only_one_may_have_is_refused(tmp_path: Path, second: str, message: str) -> None:
    assert message in complaint(tmp_path, item("a", "{cgroup: /a, ports: [85]}"), second)
