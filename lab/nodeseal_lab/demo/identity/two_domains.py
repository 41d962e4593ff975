"""(d) Two trust domains that are federated, and part."""

from __future__ import annotations

import time

from nodeseal.mesh.reasons import WhyRefused
from nodeseal_lab.demo.identity.stage import PARTNER, Stage
from nodeseal_lab.demo.numbered import NumberedConnections
from nodeseal_lab.demo.report import SHOWN_WIDTH
from nodeseal_lab.mesh_state import federated_file
from nodeseal_lab.plan import NAMESPACE, PIPELINE_HTTP_PORT, TRUST_DOMAIN, in_url

_CURL = ("curl", "-g", "--silent", "--show-error", "--max-time", "15")


def part_and_join(stage: Stage) -> None:
    report, lab = stage.report, stage.lab
    report.step("d", "Two trust domains: federated, and parted")
    report.did(f"shipper of {TRUST_DOMAIN} opens connections to ledger of {PARTNER}. node3, as it shows them:")
    across = NumberedConnections(lab, "shipper", "ledger", 2, "across")
    across.wait_open()
    report.show(stage.connections_on_terminal("node3", SHOWN_WIDTH))
    ids = {}
    for node, direction, peer in (
        ("node1", "outbound", f"spiffe://{PARTNER}/ns/{NAMESPACE}/sa/ledger"),
        ("node3", "inbound", f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/shipper"),
    ):
        rows = [row for row in stage.connections(node) if row["state"] == "open" and row["direction"] == direction]
        ours = [row for row in rows if row["destination_workload"] == f"{NAMESPACE}/ledger"]
        seen = {(row["mtls"], row["peer"], row["anchor"]) for row in ours}
        root = stage.partner_root if node == "node1" else stage.root
        expected = {(True, peer, root.sha256[:32])}
        report.check(f"{node} shows the peer", seen == expected, expected=expected, seen=seen)
        ids[node] = f"{ours[0]['tls']} with {peer}, verified by {root.short}"
    report.proved(f"node1: {ids['node1']}")
    report.proved(f"node3: {ids['node3']}, which is the new root of (b)")

    there = lab.mesh_of(PARTNER) / federated_file(TRUST_DOMAIN)
    away = lab.directory / there.name
    report.did(f"{PARTNER} parts from {TRUST_DOMAIN}: the file that names it and its workloads is taken away on node3.")
    there.rename(away)
    across.wait_cut()
    stage.wait_until(lambda: ask_ledger(stage) is not None, "ledger refuses shipper")
    found = stage.wait_until(lambda: stage.reasons("node3", "shipper"), "node3 says why connections have ended")
    meanings = {word.value: f"{word.meaning.rstrip('.')} ({word.value})" for word in WhyRefused}
    why = ", ".join(meanings.get(word, word) for word in found)
    report.proved(f"the {len(across.cuts)} connections are cut, and new ones fail ({ask_ledger(stage)}); node3: {why}")

    def refused_in_handshake() -> str | None:
        ask_ledger(stage)
        return stage.refusal("node3", "inbound", "another trust domain")

    words = stage.wait_until(refused_in_handshake, "node3 refuses shipper's next handshake")
    report.proved(f"shipper's next handshake is refused as well; node3: {words}")
    theirs = stage.wait_until(lambda: stage.refusal("node1", "outbound", "presented"), "node1 says why")
    report.proved(f"node1, where shipper is: {theirs}")
    away.rename(there)
    began = time.monotonic()
    stage.wait_until(lambda: ask_ledger(stage) is None, "ledger answers shipper")
    report.proved(f"federated again, ledger answers shipper after {time.monotonic() - began:.1f} s")


def ask_ledger(stage: Stage) -> str | None:
    """Why shipper gets no answer of ledger; None: it does."""
    url = f"http://{in_url(stage.plan.pod('ledger').named_address)}:{PIPELINE_HTTP_PORT}/"
    result = stage.lab.run("shipper", [*_CURL, url])
    return result.stderr.strip() if result.returncode else None
