"""Writes docs/kubernetes-services.md from the rows: `python -m support.service_page`, with tests/ in PYTHONPATH;
`make reference` calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tools.reference.markdown import item, page, paragraph

from support.service_rows import PARTS, Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kubernetes-services.md"


def main() -> None:
    """In the repository that this file is in."""
    PAGE.write_text(text())


def text() -> str:
    """The page."""
    return page(_blocks())


def _blocks() -> Iterator[str]:
    yield "# Services of Kubernetes"
    yield paragraph(
        "What an enrolled pod dials is captured before kube-proxy sees it. So nodeseal decides itself where a "
        "connection to a Service goes, by the Services and EndpointSlices that kube-proxy reads and by the same rules. "
        "From there on it is a connection to that endpoint: through mutual TLS if it is an enrolled workload, in "
        "plaintext if it is not. kube-proxy serves everybody else, as before: pods that are not enrolled, processes of "
        "the nodes that are not, UDP and SCTP."
    )
    yield paragraph(
        "The rules are in `sources/kubernetes/services.py` and `mesh/fronts.py`. Of kube-proxy they are those of "
        "Kubernetes 1.36.3 "
        "(`pkg/proxy/topology.go`, `serviceport.go`, `endpointslicecache.go` and `iptables/proxier.go`). This page is "
        "made of the rows that the tests go through (`tests/support/service_rows.py`, `make reference`). Where no "
        "other test is named, the test of a row is `tests/unit/test_kubernetes_services.py[NAME]`."
    )
    for heading, rows in PARTS.items():
        yield f"## {heading}"
        yield "\n".join(item(_said(row)) for row in rows)
    yield "## What else differs"
    yield "\n".join(map(item, DIFFERENCES))


def _said(row: Row) -> str:
    own = row.nodeseal or "The same."
    tests = f" (tests: {', '.join(f'`{test}`' for test in row.tests)})" if row.tests else ""
    return f"`{row.name}`: {row.kube_proxy} **nodeseal:** {own}{tests}"


DIFFERENCES = (
    "An endpoint that refuses or is silent is left for another one of the Service while `connect()` waits. With "
    "kube-proxy the connection fails. Where the client keeps its endpoint by an affinity, it fails with both.",
    "Hints are those for the client's node, also for what it dials at the node port of another node.",
    "A node port is known at the addresses of type `InternalIP` and `ExternalIP` of each Node with an agent, which "
    "tells them in its MeshNode. Dialled at another node it is that node's kube-proxy's, in plaintext. So is what a "
    "process of a node dials at a loopback address (`127.0.0.1:30080`).",
    "What a workload excludes is dialled past nodeseal, to a Service as well, unless the Service leads to an enrolled "
    "workload. At a node's address nothing tells that: who excludes it excludes the node ports there.",
    "kube-proxy may be set to know other things of its own: `nodePortAddresses`, the feature gate "
    "`AllowServiceExternalIPs`, `detectLocalMode`. nodeseal goes by their defaults.",
    "Between a change in the API and the moment when a node knows it, kube-proxy and nodeseal may know different "
    "things. What a pod dials at a cluster IP that nodeseal does not know yet goes to kube-proxy in plaintext; an "
    "enrolled endpoint refuses that, since it comes from an enrolled pod.",
)

if __name__ == "__main__":
    main()
