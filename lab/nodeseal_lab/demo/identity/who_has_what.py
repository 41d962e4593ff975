"""(a) Who has which identity, and who has issued it: as it is on the wire, and as the issuers say."""

from __future__ import annotations

import json

from nodeseal_lab.demo.handshake import Shown, look
from nodeseal_lab.demo.identity.stage import PARTNER, Stage
from nodeseal_lab.plan import NAMESPACE, TRUST_DOMAIN


def show_identities(stage: Stage) -> None:
    report, names = stage.report, {stage.root: TRUST_DOMAIN, stage.partner_root: PARTNER}
    report.step("a", "Who has which identity, and who has issued it")
    report.did(
        "intruder, which has no identity, opens TLS to port 15008 of each enrolled pod, and looks at the certificate: "
        "whose it is, and which root verifies it."
    )
    shown = {pod: look(stage.lab, "intruder", pod, names) for pod in ("shipper", "siem", "pipeline", "ledger")}
    for pod, one in shown.items():
        by = ", ".join(f"{root.short} of {names[root]}" for root in one.roots) or "none"
        report.show(f"{pod:<9} {one.identity}\n{'':<9} serial {one.serial}, root {by}")
    for pod, one in shown.items():
        domain = stage.plan.trust_domain_of(pod)
        expected = f"spiffe://{domain}/ns/{NAMESPACE}/sa/{pod}"
        report.check(f"{pod} shows its identity", one.identity == expected, expected=expected, seen=one.identity)
        verifying = [names[root] for root in one.roots]
        report.check(f"the root of {domain} verifies {pod}", verifying == [domain], expected=[domain], seen=verifying)
    report.proved(
        f"{len(shown)} pods: each shows an id of its own, and a certificate that no root but that of its trust domain "
        "verifies"
    )
    check_issued(stage, shown)


def check_issued(stage: Stage, shown: dict[str, Shown]) -> None:
    """That the issuers know these certificates as theirs."""
    report, rows = stage.report, issued(stage)
    for pod, one in shown.items():
        expected = (stage.plan.pod(pod).node, one.identity) if stage.plan.trust_domain_of(pod) == TRUST_DOMAIN else None
        seen = rows.get(one.serial)
        report.check(f"{pod}'s serial number in `nodeseal ca issued`", seen == expected, expected=expected, seen=seen)
    ours = [pod for pod, one in shown.items() if one.serial in rows]
    report.proved(
        f"nodeseal ca issued, on node1: the serial numbers that {', '.join(ours)} have shown, each with the pod's id "
        f"and node; not ledger's, which node3 has issued by the CA of {PARTNER}"
    )


def issued(stage: Stage) -> dict[str, tuple[str, str]]:
    """(node, identity) of each certificate that the service has issued to a workload, by serial number."""
    text = stage.does(
        "ca", "issued", "--config", str(stage.lab.directory / "ca.yaml"), "--limit", "10000", "-o", "json"
    )
    rows = json.loads(text)["certificates"]
    return {row["serial"].lstrip("0"): (row["node"], row["identity"]) for row in rows if row["kind"] == "workload"}
