"""What the simulation of a large cluster is made of, and what it makes of its figures."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from bench.errors import BenchError
from bench.kubernetes_scale.__main__ import read_sizes
from bench.kubernetes_scale.population import MOST_ENDPOINTS, Population
from bench.kubernetes_scale.report import OWN, percentile, table
from bench.kubernetes_scale.shapes import shares
from bench.kubernetes_scale.sizes import QUICK, Sizes

SIZES = replace(QUICK, pods=2000)


def given(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(quick=False, **{one.name: values.get(one.name) for one in fields(Sizes)})


def test_every_pod_is_of_one_service_and_one_node() -> None:
    people = Population(SIZES)
    pods = list(people.pods)
    assert len(pods) == SIZES.pods
    assert len({pod.address for pod in pods}) == SIZES.pods
    assert sum(len(some) for service in people.services for some in service.slices.values()) == SIZES.pods
    assert max(len(node.pods) for node in people.nodes) <= 110


def test_services_differ_in_size_and_none_is_empty() -> None:
    found = shares(50_000, 2000)
    assert sum(found) == 50_000
    assert min(found) >= 1
    assert max(found) > 10 * sorted(found)[1000]


def test_slice_is_never_fuller_than_the_controller_makes_it() -> None:
    people = Population(SIZES)
    service = people.services[0]
    for _ in range(3 * MOST_ENDPOINTS):
        people.add(service)
    assert max(map(len, service.slices.values())) == MOST_ENDPOINTS


def test_pod_that_goes_leaves_its_slice_and_what_its_node_publishes() -> None:
    people = Population(SIZES)
    pod = next(pod for pod in people.pods if not pod.service.plain)
    key = pod.published.key
    assert key in pod.node.enrolled
    pod.state = "ending"
    number = pod.service.take(pod)
    assert pod not in pod.service.slices[number]
    assert key not in pod.node.enrolled


def test_pods_of_some_services_are_not_enrolled() -> None:
    people = Population(SIZES)
    plain = [service for service in people.services if service.plain]
    assert len(plain) == SIZES.services * SIZES.plain
    published = {key.namespace for node in people.nodes for key in node.enrolled}
    assert published.isdisjoint(service.namespace for service in plain)


@pytest.mark.parametrize("wrong", [{"nodes": 2}, {"pods": 10}, {"own": 61}, {"probes": 0}])
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BenchError, match=f"--{next(iter(wrong))}"):
        read_sizes(given(**wrong))


def test_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_own_objects_and_those_of_kube_proxy_are_rows_of_their_own() -> None:
    names = (*OWN, "EndpointSlices", "Services", "Namespaces", "NetworkPolicies", "own Pods", "own Node")
    processes = dict.fromkeys(("agent", "core", "kube-apiserver", "etcd"), 1.0)
    churn = {
        "seconds": 10.0,
        "changes": 200,
        "behind_s": 0.0,
        "failed": {},
        "bytes": {**dict.fromkeys(names, 100_000), "EndpointSlices, protobuf": 50_000},
        "cpu": processes,
        "memory_mb": processes,
        "peak_mb": processes,
        "questions": 100,
        "ready_ms": [500.0, 900.0],
    }
    start = {"cold_s": 4.0, "warm_s": 2.0, "cold_peak_mb": 90.0, "cold_cpu_s": 3.0, "warm_cpu_s": 1.5}
    filled = {"objects": {"Pods": 2000}}
    text = table({"sizes": asdict(SIZES), "churn": churn, "start": start, "filled": filled, "keys": 100})
    assert "| watch: nodeseal's own objects | 20.0 kB/s | < 60 kB/s |" in text
    assert "| watch: EndpointSlices, as kube-proxy has them | 5.0 kB/s |  |" in text
    assert "| core: decisions for a change | 0.50 |  |" in text
    assert "| pod ready to mutual TLS, p99 | 0.90 s | < 2 s |" in text
