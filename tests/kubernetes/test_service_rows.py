"""The rows of support/service_rows.py are objects that the API server takes, and gives back as the agent reads them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nodeseal.kubernetes import objects
from support.api_server import ApiServer
from support.service_rows import NAMESPACE, OUTSIDE, PODS, ROWS, Row, World

_V4 = {
    **{pod: f"10.88.0.{number}" for number, pod in enumerate(PODS, 1)},
    OUTSIDE: "203.0.113.9",
    **{f"node{number}": f"172.29.0.{number}" for number in (1, 2, 3)},
    "cluster": "10.96.7.1",
    "cluster-2": "10.96.7.2",
    "balancer": "198.51.100.80",
    "external": "198.51.100.81",
}
WORLD = World(
    {name: name for name in ("node1", "node2", "node3")},
    _V4 | {f"{name}/6": f"fd88::{text.replace('.', ':')}" for name, text in _V4.items()},
)
# The server has one family, and so have its services.
OF_ONE_FAMILY = [row for row in ROWS if row.services and "dual-stack" not in row.name]
PATHS = {
    "Service": f"/api/v1/namespaces/{NAMESPACE}/services",
    "EndpointSlice": f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices",
}
TYPES: dict[str, Any] = {"Service": objects.Service, "EndpointSlice": objects.EndpointSlice}


@pytest.fixture(scope="module", autouse=True)
def _namespace(server: ApiServer) -> None:
    server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})


@pytest.mark.parametrize("row", OF_ONE_FAMILY, ids=[row.name for row in OF_ONE_FAMILY])
def test_objects_of_a_row_are_valid(server: ApiServer, row: Row) -> None:
    for sent in row.objects(WORLD):
        kind = sent["kind"]
        given = server.ask("POST", f"{PATHS[kind]}?dryRun=All&fieldValidation=Strict", sent)
        if kind == "Service":
            given["status"] = sent["status"]  # somebody else's to say
        read, meant = (msgspec.convert(one, TYPES[kind]) for one in (given, sent))
        if kind == "Service":
            # Whatever is not said has a default, and a node port may be given.
            for name in ("type", "cluster_ip", "external_ips", "internal_traffic_policy", "external_traffic_policy"):
                assert getattr(read.spec, name) == getattr(meant.spec, name)
            assert [(one.name, one.port, one.protocol) for one in read.spec.ports] == [
                (one.name, one.port, one.protocol) for one in meant.spec.ports
            ]
        else:
            assert (read.endpoints, read.ports, read.address_type) == (meant.endpoints, meant.ports, meant.address_type)
