"""Two meshes of different trust domains that know each other by their bundle endpoints: a domain's new root arrives by
the endpoint's hint, and what an endpoint gave counts while it is away."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeseal_lab import trust_domains
from nodeseal_lab.files import write_atomically
from nodeseal_lab.mesh_state import federated_file
from nodeseal_lab.namespaces import run_in
from support.anchors import make_ca
from support.bundle_server import BundleServer, answering, bundle_of, web_certificate
from support.connection import Address, echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs

OTHER = "other.org"
DOMAINS = {"node1": "example.org", "node2": OTHER}
NODES = tuple(DOMAINS)


@dataclass
class Endpoints:
    """A lab like the one above, whose domains know each other by their bundle endpoints: the certificate service's own
    of example.org, and a server of the test of other.org."""

    lab: RunningLab
    server: BundleServer
    cas: dict[str, Path]
    """Each node's."""
    old: dict[str, str]
    new: dict[str, Path]
    """Each node's first root, and the CA that comes after it."""

    def log(self, node: str) -> str:
        return (self.lab.run_dir(node) / "agent.log").read_text()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("endpoints"), trust_domains=[f"node2:{OTHER}"]) as lab:
        yield lab


@pytest.fixture(scope="module")
def endpoints(lab: RunningLab) -> Iterator[Endpoints]:
    cas = {node: trust_domains.ca_of(lab.directory, domain) for node, domain in DOMAINS.items()}
    old = {node: (ca / "root.pem").read_text() for node, ca in cas.items()}
    new = {node: make_ca(lab.directory / f"new-ca-{node}", trust_domain=domain) for node, domain in DOMAINS.items()}
    node1, node2 = (lab.lab.plan.node(name) for name in NODES)
    # A hint of 0 is one of 5 seconds: the least that there is.
    certificate = web_certificate(lab.directory, str(node2.address))
    behaviour = answering(bundle_of(old["node2"], sequence=1, hint=0))
    server = run_in(node2.netns, lambda: BundleServer(certificate, behaviour, str(node2.address)))
    settings = {
        "ca": str(cas["node1"]),
        "mesh": str(trust_domains.mesh_of(lab.directory, "example.org")),
        "state": str(lab.directory / "ca-state"),
        "listen": ["127.0.0.1:15018"],
        "bundle_endpoint": {"listen": [f"{node1.address}:8443"], "refresh_hint": "5s"},
    }
    write_atomically(lab.directory / "ca.yaml", yaml.safe_dump(settings))
    argv = [sys.executable, "-m", "nodeseal", "ca", "serve", "--config", str(lab.directory / "ca.yaml")]
    lab.lab.processes.start("bundle endpoint", argv, netns=node1.netns, output=lab.directory / "ca.log")
    web = {"url": server.url, "profile": "https_web", "ca_file": str(certificate)}
    federate(lab, "node1", {"trust_domain": OTHER, "bundle_endpoint": web})
    spiffe = {
        "url": f"https://{node1.address}:8443/",
        "profile": "https_spiffe",
        "spiffe_id": "spiffe://example.org/nodeseal/bundle-endpoint",
    }
    first = {"trust_domain": "example.org", "bundle": old["node1"], "bundle_endpoint": spiffe}
    federate(lab, "node2", first)
    found = Endpoints(lab, server, cas, old, new)
    for node in NODES:
        wait_for(lambda node=node: "fetched the bundle of" in found.log(node), f"{node} has asked the endpoint")
    try:
        yield found
    finally:
        server.close()


def federate(lab: RunningLab, node: str, entry: dict[str, Any]) -> None:
    """The mesh of that node is federated by this entry."""
    path = trust_domains.mesh_of(lab.directory, DOMAINS[node]) / federated_file(entry["trust_domain"])
    write_atomically(path, yaml.safe_dump(yaml.safe_load(path.read_text()) | {"federated": [entry]}))


def issue_by(ca: Path, new: Path, roots: str) -> None:
    """The CA directory is another one from now on, and trusts these."""
    for name in ("intermediate.key", "intermediate.pem"):
        write_atomically(ca / name, (new / name).read_text())
        (ca / name).chmod(0o600)
    write_atomically(ca / "root.pem", roots)


def test_roots_of_both_domains_change_by_their_endpoints_and_connections_go_on(
    endpoints: Endpoints, programs: Programs
) -> None:
    lab, mesh = endpoints.lab, trust_domains.mesh_of(endpoints.lab.directory, "example.org")
    servers = {"shipper": programs.serve("pipeline"), "pipeline": programs.serve("shipper")}
    clients = {}
    for source, server in servers.items():
        wait_for(lambda source=source, server=server: works(programs, source, server.address), f"{source} gets there")
        clients[source] = programs.dial(source, server.address)
        assert echoes(clients[source])
    pids = {node: (lab.agent_pid(node), lab.core_pids(node)) for node in NODES}
    digests = {node: anchor_of(lab, clients[source]) for node, source in (("node2", "shipper"), ("node1", "pipeline"))}

    # The other domain's endpoint tells of its new root, then its CA issues by it.
    their_new = (endpoints.new["node2"] / "root.pem").read_text()
    endpoints.server.behaviour = answering(bundle_of(endpoints.old["node2"], their_new, sequence=2, hint=0))
    wait_for(lambda: "sequence number 2, 2 trust anchors" in endpoints.log("node1"), "it came by the hint")
    issue_by(endpoints.cas["node2"], endpoints.new["node2"], their_new)
    wait_for(
        lambda: other_anchor(lab, dialled(programs, "shipper", servers["shipper"].address), digests["node2"]),
        "node1 takes certificates of the other domain's new root",
    )

    # The mesh's own: `ca serve` tells of what the mesh state says, before anything is issued by it.
    our_new = (endpoints.new["node1"] / "root.pem").read_text()
    both = {"trust_anchors": [{"pem": endpoints.old["node1"]}, {"pem": our_new}]}
    write_atomically(mesh / "trust.yaml", yaml.safe_dump(both))
    wait_for(lambda: ", 2 trust anchors" in endpoints.log("node2"), "it came by the hint")
    issue_by(endpoints.cas["node1"], endpoints.new["node1"], our_new)
    write_atomically(mesh / "trust.yaml", yaml.safe_dump({"trust_anchors": [{"pem": our_new}]}))
    wait_for(
        lambda: other_anchor(lab, dialled(programs, "pipeline", servers["pipeline"].address), digests["node1"]),
        "node2 takes certificates of the mesh's new root",
    )
    # The endpoint shows an SVID of the new root by now; it is known by what it told before.
    wait_for(lambda: endpoints.log("node2").rstrip().count(", 1 trust anchors") == 2, "the old root is told no more")

    assert all(map(echoes, clients.values())), "connections of before go on"
    assert {node: (lab.agent_pid(node), lab.core_pids(node)) for node in NODES} == pids, "nothing was restarted"
    for node in NODES:
        assert not {"bundle-unread", "bundle-empty"} & {row["word"] for row in lab.status(node)["problems"]}


def test_what_an_endpoint_gave_counts_while_it_is_away_and_over_a_restart(
    endpoints: Endpoints, programs: Programs
) -> None:
    lab = endpoints.lab
    server = programs.serve("pipeline")
    wait_for(lambda: works(programs, "shipper", server.address), "shipper gets there")
    endpoints.server.close()
    row = wait_for(lambda: unread(lab), "the endpoint is away")
    assert "its bundle could not be fetched since" in row["text"]
    assert "what it gave at" in row["remedy"]
    lab.restart_agent("node1")
    wait_for(lambda: unread(lab), "the endpoint is still away")
    wait_for(lambda: works(programs, "shipper", server.address), "shipper still gets there")


def unread(lab: RunningLab) -> dict[str, Any] | None:
    return next((row for row in lab.status("node1")["problems"] if row["word"] == "bundle-unread"), None)


def dialled(programs: Programs, source: str, address: Address) -> socket.socket | None:
    with contextlib.suppress(OSError):
        client = programs.dial(source, address, timeout=3)
        if echoes(client):
            return client
    return None


def anchor_of(lab: RunningLab, client: socket.socket | None) -> str | None:
    """By which the client's node has verified the server; None without a connection."""
    anchor: str | None = lab.outbound(client)["anchor"] if client is not None else None
    return anchor


def other_anchor(lab: RunningLab, client: socket.socket | None, than: str | None) -> bool:
    """Whether there is a connection, verified by another anchor."""
    return client is not None and anchor_of(lab, client) not in (None, than)


def works(programs: Programs, source: str, address: Address) -> bool:
    return dialled(programs, source, address) is not None
