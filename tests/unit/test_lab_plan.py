"""The plan of a lab: names, addresses, and what cannot be."""

from __future__ import annotations

import json
from ipaddress import IPv4Address

import pytest

from nodeseal_lab.errors import LabPlanError, UnknownPodError
from nodeseal_lab.plan import MAX_NODES, Plan, PodRequest, TrustDomainRequest, check_lab_name, prefix


def test_default_lab_has_the_pods_of_the_story() -> None:
    plan = Plan.build()
    assert [(pod.name, pod.node, str(pod.address), pod.enrolled_from_start) for pod in plan.pods] == [
        ("shipper", "node1", "10.77.1.10", True),
        ("siem", "node1", "10.77.1.11", True),
        ("pipeline", "node2", "10.77.2.10", True),
        ("intruder", "node2", "10.77.2.11", False),
    ]


def test_default_lab_has_two_routed_nodes() -> None:
    plan = Plan.build()
    assert [(node.name, str(node.address), str(node.gateway), str(node.pod_network)) for node in plan.nodes] == [
        ("node1", "10.77.0.1", "10.77.1.1", "10.77.1.0/24"),
        ("node2", "10.77.0.2", "10.77.2.1", "10.77.2.0/24"),
    ]


def test_lab_with_ipv6_has_the_same_numbers_in_it() -> None:
    plan = Plan.build(nodes=50, ipv6=True, more_pods=[PodRequest("web", "node50")])
    assert [str(address) for address in plan.pod("web").addresses] == ["10.77.50.10", "fd77::50:10"]
    node = plan.node("node50")
    assert [str(address) for address in (*node.addresses, *node.gateways)] == [
        "10.77.0.50",
        "fd77::50",
        "10.77.50.1",
        "fd77::50:1",
    ]
    assert [str(address) for address in plan.services[0].addresses] == ["10.77.200.1", "fd77::200:1"]


def test_lab_without_ipv6_has_none() -> None:
    plan = Plan.build()
    addresses = [
        *plan.nodes[0].addresses,
        *plan.nodes[0].gateways,
        *plan.pods[0].addresses,
        *plan.services[0].addresses,
    ]
    assert {address.version for address in addresses} == {4}


def test_namespaces_are_named_after_the_lab() -> None:
    assert set(Plan.build("demo").namespaces) == {
        f"nodeseal-demo-{name}" for name in ("fabric", "node1", "node2", "shipper", "siem", "pipeline", "intruder")
    }


def test_not_enrolled_applies_to_every_pod() -> None:
    plan = Plan.build(more_pods=[PodRequest.parse("web:node1")], enrol=False)
    assert not any(pod.enrolled_from_start for pod in plan.pods)


def test_more_pods_get_the_next_addresses_of_their_node() -> None:
    plan = Plan.build(nodes=3, more_pods=[PodRequest.parse("web:node3"), PodRequest.parse("db:node1:plain")])
    assert plan.pod("web").address == IPv4Address("10.77.3.10")
    assert plan.pod("db").address == IPv4Address("10.77.1.12")


def test_plain_pod_is_not_enrolled() -> None:
    assert not PodRequest.parse("db:node1:plain").enrolled


def test_a_host_workload_has_the_namespace_and_addresses_of_its_node() -> None:
    plan = Plan.build("demo", more_pods=[PodRequest.parse_host_workload("vector:node2:9100:plain")], ipv6=True)
    vector, node = plan.pod("vector"), plan.node("node2")
    assert (vector.netns, vector.addresses) == (node.netns, node.addresses)
    assert (vector.cgroup, vector.port, vector.enrolled_from_start) == ("/nodeseal-lab-demo/vector", 9100, False)
    assert len(set(plan.namespaces)) == len(plan.namespaces)


@pytest.mark.parametrize(
    "text",
    ["vector", "vector:node1", "vector:node1:", "vector:node1:0", "vector:node1:65536", "vector:node1:1:x", ":a:1"],
)
def test_a_host_workload_that_is_not_of_the_form_is_refused(text: str) -> None:
    with pytest.raises(LabPlanError, match=f"--host-workload {text}: expected NAME:NODE:PORT"):
        PodRequest.parse_host_workload(text)


def test_host_workloads_of_a_node_have_ports_of_their_own() -> None:
    more = [PodRequest.parse_host_workload(f"{name}:node1:9100") for name in ("vector", "registry")]
    with pytest.raises(LabPlanError, match="--host-workload registry: another one on node1 has port 9100"):
        Plan.build(more_pods=more)


@pytest.mark.parametrize("ipv6", [False, True])
def test_plan_survives_the_state_file(ipv6: bool) -> None:
    more = [PodRequest.parse("web:node3:plain"), PodRequest.parse_host_workload("vector:node1:9100")]
    plan = Plan.build(
        "demo",
        nodes=3,
        more_pods=more,
        ipv6=ipv6,
        trust_domains=[TrustDomainRequest("node3", "partner.example")],
        certificate_lifetime="90s",
    )
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_largest_lab_has_distinct_addresses() -> None:
    more = [PodRequest(f"web{n}", "node50") for n in range(200)]
    plan = Plan.build(nodes=MAX_NODES, more_pods=more, ipv6=True)
    things = (*plan.pods, *plan.nodes, *plan.services)
    addresses = [address for thing in things for address in thing.addresses]
    addresses += [address for node in plan.nodes for address in node.gateways]
    assert len(set(addresses)) == len(addresses)


def test_too_many_pods_on_a_node_are_refused() -> None:
    more = [PodRequest(f"web{n}", "node2") for n in range(199)]
    with pytest.raises(LabPlanError, match="node2 has 200 pods already"):
        Plan.build(more_pods=more)


@pytest.mark.parametrize("text", ["web", "web:", "web:node1:fancy", "web:node1:plain:x"])
def test_pod_option_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(LabPlanError, match="expected NAME:NODE or NAME:NODE:plain"):
        PodRequest.parse(text)


@pytest.mark.parametrize("name", ["", "Web", "web_1", "-web", "web-", "node7", "fabric", "localhost", "w" * 16, "../x"])
def test_impossible_pod_name_is_refused(name: str) -> None:
    with pytest.raises(LabPlanError, match="expected 1 to 15 lower case letters"):
        Plan.build(more_pods=[PodRequest(name, "node1")])


def test_second_pod_of_a_name_is_refused() -> None:
    with pytest.raises(LabPlanError, match="has a pod of this name already"):
        Plan.build(more_pods=[PodRequest("siem", "node2")])


def test_pod_on_an_unknown_node_is_refused_naming_the_nodes() -> None:
    with pytest.raises(LabPlanError, match="no node 'node3': this lab has node1, node2"):
        Plan.build(more_pods=[PodRequest("web", "node3")])


@pytest.mark.parametrize("nodes", [-1, 0, 1, MAX_NODES + 1])
def test_impossible_number_of_nodes_is_refused(nodes: int) -> None:
    with pytest.raises(LabPlanError, match="expected 2 to 50"):
        Plan.build(nodes=nodes)


@pytest.mark.parametrize("name", ["", "a-b", "A", "1a", "../../etc", "a" * 17])
def test_impossible_lab_name_is_refused(name: str) -> None:
    with pytest.raises(LabPlanError, match="expected 1 to 16"):
        check_lab_name(name)


def test_unknown_pod_error_names_the_pods() -> None:
    with pytest.raises(UnknownPodError, match="unknown pod 'nope': this lab has shipper, siem, pipeline, intruder"):
        Plan.build().pod("nope")


def test_no_lab_is_a_prefix_of_another() -> None:
    assert not prefix("lab2").startswith(prefix("lab"))


def test_hosts_file_has_pods_and_services() -> None:
    lines = Plan.build().hosts_file().splitlines()
    assert "10.77.2.10 pipeline" in lines
    assert "10.77.200.1 pipeline.svc" in lines
    assert "127.0.0.1 localhost" in lines


def test_names_stand_for_ipv6_where_it_is() -> None:
    lines = Plan.build(ipv6=True).hosts_file().splitlines()
    assert {"fd77::2:10 pipeline", "fd77::200:1 pipeline.svc", "fd77::2 node2", "::1 localhost"} <= set(lines)
    assert not any(line.endswith(" pipeline") and line.startswith("10.") for line in lines)


def test_issuer_is_kept_and_must_be_one_that_there_is() -> None:
    plan = Plan.build(issuer="service")
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.build().issuer == "embedded"
    with pytest.raises(LabPlanError, match="--issuer vault: expected one of embedded, service"):
        Plan.build(issuer="vault")


def test_nodes_of_other_trust_domains_have_them_with_their_pods() -> None:
    requests = [TrustDomainRequest.parse(text) for text in ("node3:partner.example", "node2:partner.example")]
    plan = Plan.build(nodes=3, more_pods=[PodRequest("ledger", "node3")], trust_domains=requests)
    assert plan.trust_domains == ("example.org", "partner.example")
    found = {pod.name: plan.trust_domain_of(pod.name) for pod in plan.pods}
    assert found == {
        "shipper": "example.org",
        "siem": "example.org",
        "pipeline": "partner.example",
        "intruder": "partner.example",
        "ledger": "partner.example",
    }
    assert Plan.build().trust_domains == ("example.org",)


@pytest.mark.parametrize("text", ["node2", "node2:", ":partner.example", "node2:A", "node2:..", "node2:a/b"])
def test_trust_domain_that_is_not_of_the_form_is_refused(text: str) -> None:
    with pytest.raises(LabPlanError, match=f"--trust-domain {text}: expected NODE:TRUST_DOMAIN"):
        TrustDomainRequest.parse(text)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["node3:a"], "no node 'node3': this lab has node1, node2"),
        (["node1:a"], "node1 is of the lab's own trust domain, example.org; name another node"),
        (["node2:example.org"], "that is the lab's own trust domain; name another one"),
        (["node2:a", "node2:b"], "node2 is of a already"),
    ],
)
def test_trust_domain_that_cannot_be_is_refused(texts: list[str], why: str) -> None:
    requests = [TrustDomainRequest.parse(text) for text in texts]
    with pytest.raises(LabPlanError, match=f"--trust-domain {texts[-1]}: {why}"):
        Plan.build(trust_domains=requests)


@pytest.mark.parametrize(
    ("text", "issuer", "least"),
    [("soon", "embedded", "5s"), ("1s", "embedded", "5s"), ("9s", "service", "10s"), ("366d", "service", "10s")],
)
def test_lifetime_that_nobody_takes_is_refused(text: str, issuer: str, least: str) -> None:
    with pytest.raises(LabPlanError, match=f"--certificate-lifetime {text}: expected a number .*, from {least} to"):
        Plan.build(certificate_lifetime=text, issuer=issuer)
    assert Plan.build(certificate_lifetime=least, issuer=issuer).certificate_lifetime == least
