"""What a change of one workload costs every agent of a cluster, by how many workloads share an object:
`python -m bench.kubernetes_bytes`.

The bytes of a watch's events are those that a real API server sends (`make test-kubernetes` builds it), with names as
long as a Deployment's pods have them. How many events a change makes, and how full objects are, comes of the agent's
own choice of objects (nodeseal.sources.kubernetes.shards) while the pods of a node come and go at random.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import ssl
import sys
import tempfile
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from bench.build import CHECKOUT
from nodeseal.mesh.trust import Trust
from nodeseal.mesh.workload import Mode, Phase, Workload, WorkloadName
from nodeseal.sources.kubernetes import shards
from nodeseal.sources.kubernetes.holder import Holder
from nodeseal.sources.kubernetes.mesh_objects import PublishedWorkload, object_name, write_workload
from nodeseal.sources.kubernetes.node_status import node_status
from nodeseal.sources.kubernetes.renewals import RENEWAL_S
from nodeseal.sources.source import NodeReport

sys.path.insert(0, str(CHECKOUT / "tests"))  # where a real API server is started

from nodeseal.clock import utc_now
from support.api_server import ADMIN, ApiServer
from support.manifests import Cluster, rendered
from support.namespaces import Namespaces
from support.patience import wait_for

ROOMS = (1, 2, 4, 8, 16, 32, 110)
NODES, PODS, CHANGES = 1000, 50_000, 20
_NODE = "ip-10-20-130-240.eu-central-1.compute.internal"
_PATH = "/apis/nodeseal.io/v1alpha1"
_TURNS = 4000


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kubernetes_bytes", description=(__doc__ or "").split("\n")[0]
    )
    parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as directory,
        Namespaces() as net,
        ApiServer(Path(directory), net.create("bytes")) as server,
    ):
        sizes, more, node = measure(server)
    print(table(sizes, more, node))
    return 0


def measure(server: ApiServer) -> tuple[list[int], int, int]:
    """(bytes of the event of an object by how many workloads it has; how many more if it is new; of a MeshNode's)."""
    definitions = [one for one in rendered() if one["kind"] == "CustomResourceDefinition"]
    for one in definitions:
        _widen(one)
    Cluster(server).apply(definitions)
    wait_for(lambda: _is_established(server), "the API server knows the new kinds")
    uid = server.ask("POST", "/api/v1/nodes", {"metadata": {"name": _NODE}})["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": _NODE, "uid": uid}
    sizes = [0]
    body: dict[str, Any] = {
        "apiVersion": "nodeseal.io/v1alpha1",
        "kind": "MeshEndpoints",
        "metadata": {"name": object_name(_NODE, 12), "ownerReferences": [owner]},
        "spec": {"node": _NODE, "workloads": []},
    }
    before = server.ask("GET", f"{_PATH}/meshendpoints")["metadata"]["resourceVersion"]
    version = _put(server, "meshendpoints", body, "")
    made = _event(server, "meshendpoints", before)
    before, version = version, _put(server, "meshendpoints", body, version)
    more = made - _event(server, "meshendpoints", before)
    for count in range(1, max(ROOMS) + 1):
        body["spec"]["workloads"] = [msgspec.to_builtins(_published(number)) for number in range(count)]
        before, version = version, _put(server, "meshendpoints", body, version)
        sizes.append(_event(server, "meshendpoints", before))
    digests = [f"{number:032x}" for number in range(2)]
    status = node_status(
        "0.1.0",
        Holder("b5f1c1b0-6c0e-4c7e-9a56-2d4c8a1f3e11", Path("/run/nodeseal")),
        Trust(frozenset(digests), digests[0], ()),
        NodeReport(50, 50),
        None,
        utc_now(),
    )
    body = {
        "apiVersion": "nodeseal.io/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": _NODE, "ownerReferences": [owner]},
        "status": msgspec.to_builtins(status),
    }
    version = _put(server, "meshnodes", body, "")
    body["status"]["enrolled"] = 49
    _put(server, "meshnodes", body, version)
    return sizes, more, _event(server, "meshnodes", version)


def table(sizes: Sequence[int], more: int, node: int) -> str:
    """Markdown."""
    renewals = NODES / RENEWAL_S * node
    lines = [
        "| workloads an object | event, full | events a change | event, mean | an agent's watch | all objects |",
        "|---|---|---|---|---|---|",
    ]
    for room in ROOMS:
        events, mean, filled = churn(room, sizes, more)
        watch = CHANGES * events * mean
        objects = PODS / filled
        lines.append(
            f"| {room} | {sizes[room]:,} B | {events:.2f} | {mean:,.0f} B | {(watch + renewals) / 1000:.0f} kB/s "
            f"| {objects:,.0f}, {objects * sizes[round(filled)] / 1e6:.0f} MB |"
        )
    lines += [
        "",
        f"An object that is made has {more:,} B more. A MeshNode has {node:,} B; the renewals of {NODES:,} nodes are "
        f"{renewals / 1000:.1f} kB/s, which are in the sums.",
    ]
    return "\n".join(lines)


def churn(room: int, sizes: Sequence[int], more: int) -> tuple[float, float, float]:
    """(events a change, bytes an event, workloads an object) while a node's pods come and go."""
    chosen = random.Random(room)  # noqa: S311
    present: dict[int, tuple[PublishedWorkload, ...]] = {}
    wanted: dict[WorkloadName, PublishedWorkload] = {}
    bytes_: list[int] = []
    filled: list[float] = []
    fresh = iter(range(1 << 30))
    goal = PODS // NODES
    for turn in range(_TURNS + goal):
        if turn < goal or chosen.random() < (0.5 if len(wanted) == goal else float(len(wanted) < goal)):
            one = _published(next(fresh))
            wanted[one.key] = one
        else:
            del wanted[chosen.choice(sorted(wanted))]
        before = set(present)
        for number, contents in _write(present, wanted, room):
            if turn >= goal:
                bytes_.append(sizes[len(contents)] + (0 if number in before else more))
        filled.append(len(wanted) / len(present))
    return len(bytes_) / _TURNS, fmean(bytes_), fmean(filled[goal:])


def _write(
    present: dict[int, tuple[PublishedWorkload, ...]], wanted: dict[WorkloadName, PublishedWorkload], room: int
) -> Iterator[tuple[int, tuple[PublishedWorkload, ...]]]:
    """What events have in them: of a removal what was in it."""
    for number, contents in shards.steps(present, wanted, room):
        if contents:
            present[number] = contents
            yield number, contents
        else:
            yield number, present.pop(number)


def _published(number: int) -> PublishedWorkload:
    name = WorkloadName("telemetry-production", f"pipeline-gateway-6d5f9c7b8d-{number:05d}")
    address = IPv4Address(0x0A14_8200 + number % 65536)
    return write_workload(
        Workload(name, "pipeline-gateway", _NODE, (address,), None, True, Mode.PERMISSIVE, Phase.ENROLLED)
    )


def _widen(definition: dict[str, Any]) -> None:
    """Objects may have more workloads than those that are installed."""
    for version in definition["spec"]["versions"]:
        spec = version["schema"]["openAPIV3Schema"]["properties"].get("spec")
        if spec is not None:
            spec["properties"]["workloads"]["maxItems"] = max(ROOMS)


def _is_established(server: ApiServer) -> bool:
    try:
        for plural in ("meshendpoints", "meshnodes"):
            server.ask("GET", f"{_PATH}/{plural}")
    except AssertionError:
        return False
    return True


def _put(server: ApiServer, plural: str, body: dict[str, Any], version: str) -> str:
    """As an agent does it; the new version."""
    metadata = body["metadata"]
    if not version:
        found = server.ask("POST", f"{_PATH}/{plural}", body)
    else:
        metadata |= {"resourceVersion": version, "managedFields": [{}]}
        found = server.ask("PUT", f"{_PATH}/{plural}/{metadata['name']}", body)
    return str(found["metadata"]["resourceVersion"])


def _event(server: ApiServer, plural: str, version: str) -> int:
    """Bytes of the first line that a watch from this version sends."""

    def ask() -> int:
        access = server.access()
        host = access.server.removeprefix("https://").partition(":")
        context = ssl.create_default_context(cafile=access.ca)
        connection = http.client.HTTPSConnection(host[0], int(host[2]), context=context, timeout=30)
        path = f"{_PATH}/{plural}?watch=true&resourceVersion={version}"
        connection.request("GET", path, headers={"Authorization": f"Bearer {ADMIN}", "Accept": "application/json"})
        line = connection.getresponse().readline()
        connection.close()
        if json.loads(line)["type"] not in ("ADDED", "MODIFIED"):
            raise ValueError(line)
        return len(line)

    return server.inside(ask)


if __name__ == "__main__":
    sys.exit(main())
