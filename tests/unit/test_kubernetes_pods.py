"""What a pod is in the mesh model: its addresses, its place, and from when until when it is one."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nodeseal.kubernetes.objects import Container, ContainerPort, Meta, Pod, PodIp, PodSpec, PodStatus
from nodeseal.mesh.exclusions import Excluded, Exclusions, PortRange
from nodeseal.mesh.host import OWN_NAMESPACE, HostPlace
from nodeseal.mesh.limits import LimitChanges
from nodeseal.mesh.workload import Connect, Mode, OnFailure, Workload, WorkloadName
from nodeseal.sources.kubernetes.places import Place
from nodeseal.sources.kubernetes.pods import MIRROR, MULTUS, STATIC, Found, uid_on_node, workload_of
from nodeseal.sources.kubernetes.wanted import Settings

IN, OUT = Settings(enrol=True), Settings()
NETNS = "/run/netns/cni-1"
DIGEST = "0123456789abcdef0123456789abcdef"


def pod(*ips: str, phase: str = "Running", annotations: dict[str, str] | None = None, **changes: Any) -> Pod:
    spec = PodSpec(
        "node1", "web", **{key: changes.pop(key) for key in ("host_network", "containers") if key in changes}
    )
    meta = Meta("web-1", "shop", "u1", annotations=annotations or {}, **changes)
    return Pod(meta, spec, PodStatus(phase, [PodIp(ip) for ip in ips]))


def place(*addresses: str, **changes: Any) -> Place:
    return replace(Place(NETNS, 1, frozenset(map(ip_address, addresses))), **changes)


def found(one: Pod, settings: Settings = IN, at: Place | None = None, *told: str) -> Found:
    return workload_of(one, settings, at, "node1", tuple(map(ip_address, told)))


def addresses(result: Found) -> list[str]:
    assert result.workload is not None
    return [str(one) for one in result.workload.addresses]


def test_pod_in_its_sandbox_is_a_workload() -> None:
    settings = Settings(
        enrol=True,
        mode=Mode.STRICT,
        on_failure=OnFailure.OPEN,
        connect=Connect.EARLY,
        exclude=Exclusions(Excluded((PortRange(9090, 9090),))),
        limits=LimitChanges(connections=100),
    )
    both = (ip_address("10.1.0.5"), ip_address("fd00::5"))
    assert found(pod("10.1.0.5", "fd00::5"), settings, place("10.1.0.5", "fd00::5")) == Found(
        Workload(
            WorkloadName("shop", "web-1"),
            "web",
            "node1",
            both,
            NETNS,
            wanted=True,
            mode=Mode.STRICT,
            exclude=settings.exclude,
            on_failure=OnFailure.OPEN,
            limits=settings.limits,
            connect=Connect.EARLY,
        )
    )


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pod_that_has_ended_is_none_though_it_still_has_an_address(phase: str) -> None:
    assert found(pod("10.1.0.5", phase=phase), IN, place("10.1.0.5")) == Found(None)


def test_pod_that_is_pending_is_one_as_soon_as_it_has_an_address() -> None:
    """Its init containers run."""
    assert found(pod(phase="Pending")).workload is None
    assert addresses(found(pod("10.1.0.5", phase="Pending"), IN, place("10.1.0.5"))) == ["10.1.0.5"]


def test_addresses_of_the_network_plugin_count_before_the_api_server_tells_them() -> None:
    assert addresses(found(pod(phase="Pending"), IN, place("10.1.0.5"), "10.1.0.5")) == ["10.1.0.5"]


def test_pod_that_is_terminating_is_one_until_its_sandbox_is_gone() -> None:
    ending = pod("10.1.0.5", deletion_timestamp="2026-01-01T00:00:00Z")
    assert addresses(found(ending, IN, place("10.1.0.5"))) == ["10.1.0.5"]
    assert found(ending) == Found(None)


def test_pod_whose_sandbox_is_not_found_waits() -> None:
    result = found(pod("10.1.0.5"))
    assert result.workload is not None
    assert (result.workload.wanted, result.workload.netns) == (True, None)
    assert result.waits == "no sandbox of it is on the node node1"


def test_namespace_with_other_addresses_is_not_the_pods_yet() -> None:
    """After a reboot two pods have each other's, until the kubelet has told it."""
    result = found(pod("10.1.0.5"), IN, place("10.1.0.6"))
    assert result.workload is None
    assert result.waits == "its network namespace lacks 10.1.0.5"


def test_address_that_is_not_there_yet_is_waited_for() -> None:
    result = found(pod("10.1.0.5", "fd00::5"), IN, place("10.1.0.5"))
    assert addresses(result) == ["10.1.0.5"]
    assert result.waits == "its network namespace lacks fd00::5"


def test_further_interfaces_are_its_own() -> None:
    networks = [{"name": "cluster", "ips": ["10.1.0.5"], "default": True}, {"interface": "net1", "ips": ["10.9.0.5"]}]
    two = pod("10.1.0.5", annotations={MULTUS: json.dumps(networks)})
    assert addresses(found(two, IN, place("10.1.0.5", "10.9.0.5"))) == ["10.1.0.5", "10.9.0.5"]


def test_address_that_only_an_annotation_tells_does_not_count() -> None:
    """Whoever may annotate a pod could take another's away."""
    networks = [{"ips": ["10.1.0.77", "127.0.0.1", "nonsense", "fe80::1"]}]
    liar = pod("10.1.0.5", annotations={MULTUS: json.dumps(networks)})
    assert addresses(found(liar, IN, place("10.1.0.5"))) == ["10.1.0.5"]
    assert addresses(found(liar, OUT)) == ["10.1.0.5"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 10_000, '[{"ips": 5}]', f'"{"x" * 70_000}"'])
def test_broken_note_of_interfaces_is_told(text: str) -> None:
    result = found(pod("10.1.0.5", annotations={MULTUS: text}), IN, place("10.1.0.5"))
    assert addresses(result) == ["10.1.0.5"]
    (problem,) = result.problems
    assert problem.startswith(f"pod shop/web-1: the annotation {MULTUS} cannot be read")


def test_pod_that_is_not_wanted_needs_no_place() -> None:
    result = found(pod("10.1.0.5"), OUT)
    assert result.workload is not None
    assert (result.workload.wanted, result.workload.netns, result.waits) == (False, None, "")


def ports(*numbers: int, protocol: str = "TCP") -> list[Container]:
    return [Container([ContainerPort(number, protocol) for number in numbers])]


def test_pod_of_the_host_network_is_known_by_its_cgroup() -> None:
    one = pod("fd00::1", "10.0.0.11", host_network=True, containers=[*ports(9100), *ports(53, protocol="UDP")])
    result = found(one, IN, place(netns=OWN_NAMESPACE, cgroup="/kubepods/podu1", of_node=True)).workload
    assert result is not None
    assert result.host == HostPlace("/kubepods/podu1", (PortRange(9100, 9100),))
    assert (result.netns, list(map(str, result.addresses))) == (OWN_NAMESPACE, ["10.0.0.11", "fd00::1"])


def test_pod_of_the_host_network_that_is_not_wanted_is_the_nodes() -> None:
    assert found(pod("10.0.0.11", host_network=True), OUT) == Found(None)


def test_pod_of_the_host_network_waits_for_its_cgroup() -> None:
    one = pod("10.0.0.11", host_network=True)
    assert found(one).waits == "no process of it is on the node"
    assert found(one, IN, place(of_node=True)).waits == "its processes are in no cgroup v2 tree"


def test_what_says_nothing_for_the_host_network_is_told() -> None:
    settings = replace(IN, exclude=Exclusions(Excluded((PortRange(9090, 9090),))))
    one = pod("10.0.0.11", host_network=True, containers=ports(15008, 80))
    result = found(one, settings, place(cgroup="/kubepods/podu1", of_node=True))
    assert result.workload is not None
    assert result.workload.host == HostPlace("/kubepods/podu1", (PortRange(80, 80),))
    assert not result.workload.exclude
    assert len(result.problems) == 2


@pytest.mark.parametrize(
    ("annotations", "uid"),
    [
        ({}, "u1"),
        ({MIRROR: "x", STATIC: DIGEST}, DIGEST),
        ({STATIC: DIGEST}, "u1"),
        ({MIRROR: "x"}, "u1"),
        # What another pod has for a UID is none of a static pod.
        ({MIRROR: "x", STATIC: "11111111-2222-3333-4444-555555555555"}, "u1"),
    ],
)
def test_static_pod_has_the_uid_of_its_kubelet(annotations: dict[str, str], uid: str) -> None:
    assert uid_on_node(pod("10.1.0.5", annotations=annotations)) == uid
