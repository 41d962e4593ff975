"""NetworkPolicies that do not fit an enrolled pod, and those that do."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from nodeseal.sources.kubernetes.network_policies import NetworkPolicy, obstacles

BLOCKED = "tunnels (port 15008) would be blocked"
OPEN = "who may open tunnels (port 15008) could reach every port"
WEB = {"app": "web", "tier": "front"}


def policy(name: str = "guard", **spec: Any) -> NetworkPolicy:
    """As the API server serves it."""
    value = {"metadata": {"name": name, "namespace": "shop"}, "spec": {"podSelector": {}, **spec}}
    return msgspec.json.decode(json.dumps(value), type=NetworkPolicy)


def ingress(*rules: Any) -> NetworkPolicy:
    return policy(policyTypes=["Ingress"], ingress=list(rules))


def egress(*rules: Any) -> NetworkPolicy:
    return policy(policyTypes=["Ingress", "Egress"], egress=list(rules))


def port(number: int | str | None, **more: Any) -> dict[str, Any]:
    return {"protocol": "TCP", **({"port": number} if number is not None else {}), **more}


@pytest.mark.parametrize(
    "fitting",
    [
        policy(policyTypes=["Ingress"]),
        policy(policyTypes=["Egress"]),
        ingress({}),
        ingress({"from": [{"podSelector": {}}]}),
        ingress({"ports": [port(None)]}),
        ingress({"ports": [port(1, endPort=65535)]}),
        ingress({"ports": [port(80), port(None)]}),
        ingress({"ports": [{"protocol": "UDP", "port": 53}]}),
        egress({}),
        egress({"ports": [{"protocol": "UDP", "port": 53}]}, {"to": [{"podSelector": {}}]}),
        # What a policy says of a way that it is not about.
        policy(policyTypes=["Egress"], ingress=[{"ports": [port(80)]}]),
    ],
)
def test_policy_without_tcp_ports_fits(fitting: NetworkPolicy) -> None:
    assert obstacles(WEB, [fitting]) == ()


@pytest.mark.parametrize(
    ("unfitting", "said", "why"),
    [
        (ingress({"ports": [port(80)]}), "be reached at (80)", BLOCKED),
        (ingress({"ports": [port("http")]}), "be reached at (http)", BLOCKED),
        (ingress({"ports": [port(8000, endPort=9000)]}), "be reached at (8000-9000)", BLOCKED),
        (ingress({}, {"ports": [port(80)]}), "be reached at (80)", BLOCKED),
        (ingress({"ports": [port(number) for number in (1, 2, 3, 4)]}), "be reached at (1, 2, 3, ...)", BLOCKED),
        (ingress({"ports": [port(15008)]}), "be reached at (15008)", OPEN),
        (ingress({"ports": [port(80), port(15000, endPort=16000)]}), "be reached at (80, 15000-16000)", OPEN),
        (egress({"ports": [port(443)]}), "be let out to (443)", BLOCKED),
        (egress({"ports": [{"protocol": "UDP", "port": 53}, port(53)]}), "be let out to (53)", BLOCKED),
    ],
)
def test_policy_that_names_tcp_ports_does_not_fit(unfitting: NetworkPolicy, said: str, why: str) -> None:
    line = f"NetworkPolicy shop/guard says at which ports it may {said}: {why}"
    assert obstacles(WEB, [unfitting]) == (line,)


def test_each_policy_is_named_in_order() -> None:
    both = [
        policy("b", policyTypes=["Ingress"], ingress=[{"ports": [port(80)]}]),
        policy("a", policyTypes=["Ingress"], ingress=[{"ports": [port(81)]}]),
    ]
    assert [line.split()[1] for line in obstacles(WEB, both)] == ["shop/a", "shop/b"]


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({}, True),
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"app": "web", "tier": "back"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "api"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["api"]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["web"]}]}, True),
        ({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        # One of a later version: the policy counts.
        ({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["w*"]}]}, True),
        ({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "zone", "operator": "Exists"}]}, False),
    ],
)
def test_policy_counts_for_the_pods_that_it_selects(selector: Any, selected: bool) -> None:
    found = obstacles(WEB, [policy(podSelector=selector, policyTypes=["Ingress"], ingress=[{"ports": [port(80)]}])])
    assert bool(found) is selected
