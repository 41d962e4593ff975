"""The field `exclude` of a workload: what it says, and what is said about what is wrong with it."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from nodeseal.documents.exclude import MAX_ITEMS
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.model import WorkloadName
from nodeseal.sources.directory.source import load
from nodeseal.sources.source import MeshStateError


def read(directory: Path, exclude: str) -> Exclusions:
    text = (
        "trust_domain: example.org\n"
        f"workloads:\n- name: a\n  node: node1\n  address: 10.0.0.1\n  exclude:\n    {exclude}\n"
    )
    (directory / "m.yaml").write_text(text)
    return load(directory).workloads[WorkloadName("default", "a")].exclude


def complaint(directory: Path, exclude: str) -> str:
    with pytest.raises(MeshStateError) as caught:
        read(directory, exclude)
    (problem,) = caught.value.problems
    return str(problem)


def test_a_workload_excludes_nothing_by_itself(tmp_path: Path) -> None:
    text = "trust_domain: example.org\nworkloads:\n- {name: a, node: node1, address: 10.0.0.1}\n"
    (tmp_path / "m.yaml").write_text(text)
    exclude = load(tmp_path).workloads[WorkloadName("default", "a")].exclude
    assert exclude == NO_EXCLUSIONS
    assert not exclude


def test_ports_ranges_and_addresses_are_read(tmp_path: Path) -> None:
    inbound = 'inbound: {ports: [9090, "8000-8010", 8020-8021], from: ["10.0.0.0/8", "fd00::/8"]}'
    outbound = "outbound: {ports: [5432], to: [169.254.169.254, 2001:20:30:10:5:6:7:8]}"
    exclude = read(tmp_path, f"{inbound}\n    {outbound}")
    assert exclude
    assert exclude.inbound.ports == (PortRange(9090, 9090), PortRange(8000, 8010), PortRange(8020, 8021))
    assert exclude.inbound.networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert exclude.outbound == Excluded(
        (PortRange(5432, 5432),), (ip_network("169.254.169.254/32"), ip_network("2001:20:30:10:5:6:7:8/128"))
    )


@pytest.mark.parametrize("exclude", ["inbound: {}", "outbound: {ports: []}", "inbound: {from: []}"])
def test_empty_fields_exclude_nothing(tmp_path: Path, exclude: str) -> None:
    assert not read(tmp_path, exclude)


PORT = 'expected a port from 1 to 65535, or a range of them such as "8000-8010"'
NETWORK = "expected an address or a range of addresses such as 10.0.0.0/8 or fd00::/8"


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ("inbound: {ports: 9090}", "exclude.inbound.ports: expected a list of ports, found the number 9090"),
        ("inbound: {ports: [0]}", f"exclude.inbound.ports[0]: {PORT}, found the number 0"),
        ("inbound: {ports: [80, 65536]}", f"exclude.inbound.ports[1]: {PORT}, found the number 65536"),
        ("inbound: {ports: [0x50]}", f"exclude.inbound.ports[0]: {PORT}, found the number 0x50"),
        ("inbound: {ports: [http]}", f"exclude.inbound.ports[0]: {PORT}, found 'http'"),
        ("inbound: {ports: [1-65536]}", f"exclude.inbound.ports[0]: {PORT}, found '1-65536'"),
        (
            "inbound: {ports: [81-80]}",
            "exclude.inbound.ports[0]: expected a range whose first port is not behind its last, found '81-80'",
        ),
        ("outbound: {ports: [80, 80]}", "exclude.outbound.ports[1]: expected each once, found 80 again"),
        ("inbound: {from: [10.0.0.0/33]}", f"exclude.inbound.from[0]: {NETWORK}, found '10.0.0.0/33'"),
        ("inbound: {from: [db]}", f"exclude.inbound.from[0]: {NETWORK}, found 'db'"),
        ("inbound: {from: ['fe80::1%eth0']}", f"exclude.inbound.from[0]: {NETWORK}, found 'fe80::1%eth0'"),
        (
            "outbound: {to: [10.0.0.1/8]}",
            "exclude.outbound.to[0]: expected a range that begins where its prefix says (10.0.0.0/8), "
            "found '10.0.0.1/8'",
        ),
        ("inbound: {to: []}", "exclude.inbound.to: expected only from, ports, found the unknown field 'to'"),
        ("inboud: {}", "exclude.inboud: expected 'inbound', found the unknown field 'inboud'"),
        ("inbound: [80]", "exclude.inbound: expected a mapping, found a list"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, exclude: str, message: str) -> None:
    assert complaint(tmp_path, exclude) == f"m.yaml:7: workloads[0].{message}"


def test_a_list_that_is_too_long_is_refused(tmp_path: Path) -> None:
    ports = ", ".join(map(str, range(1, MAX_ITEMS + 2)))
    expected = f"expected at most {MAX_ITEMS} items, found {MAX_ITEMS + 1}"
    assert complaint(tmp_path, f"inbound: {{ports: [{ports}]}}").endswith(expected)
