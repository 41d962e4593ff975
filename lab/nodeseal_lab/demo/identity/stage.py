"""What the steps of the story of identities act on: three nodes, two of one trust domain and one of another."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from nodeseal.contracts.refusal import in_words
from nodeseal_lab import agents, trust_domains
from nodeseal_lab.demo.handshake import Root
from nodeseal_lab.demo.report import CheckFailed, Report
from nodeseal_lab.demo.story import Story
from nodeseal_lab.plan import (
    PIPELINE_HTTP_PORT,
    PIPELINE_LINES_PORT,
    SIEM_HTTP_PORT,
    TRUST_DOMAIN,
    Plan,
    PodRequest,
    TrustDomainRequest,
    in_url,
)

T = TypeVar("T")

PARTNER = "partner.example"
"""The trust domain of node3."""
LIFETIME = "20s"
"""Of workloads' certificates."""

_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.1


class Stage(Story):
    """The lab, its roots, and what the steps have in common."""

    def __init__(self, name: str, report: Report, *, ipv6: bool = False) -> None:
        super().__init__(
            Plan.build(
                name,
                nodes=3,
                more_pods=[PodRequest("ledger", "node3")],
                ipv6=True,
                ipv6_names=ipv6,
                issuer="service",
                trust_domains=[TrustDomainRequest("node3", PARTNER)],
                certificate_lifetime=LIFETIME,
            ),
            report,
        )

    def begin(self) -> None:
        """Before the first step."""
        seconds = self.bring_up()
        directory = self.lab.directory
        self.root = Root.of(trust_domains.ca_of(directory, TRUST_DOMAIN) / "root.pem")
        self.partner_root = Root.of(trust_domains.ca_of(directory, PARTNER) / "root.pem")
        self._start_ledger()
        report = self.report
        report.say(
            "nodeseal demo identity: who is who on three nodes, by which certificates, and what becomes of that when a "
            "root is replaced, an identity is revoked, and two trust domains part. The nodes and pods are network "
            "namespaces; the programs, the packets and the certificates are real."
        )
        report.say()
        self.say_nodes()
        report.say(
            f"  node1 and node2 are of the trust domain {TRUST_DOMAIN}: the certificate service on node1 issues. node3 "
            f"is of {PARTNER}: its agent issues, by a CA of its own. The two are federated. Certificates are valid for "
            f"{LIFETIME} here, and are renewed at half of that; up in {seconds:.1f} s"
        )

    def mesh_option(self, trust_domain: str = TRUST_DOMAIN) -> tuple[str, str]:
        """For the commands that change a mesh directory: this lab need not be the machine's only one."""
        return "--mesh", str(self.lab.mesh_of(trust_domain))

    def wait_until(self, holds: Callable[[], T | None], what: str) -> T:
        """Asks again and again; what it says at last. Raises CheckFailed, naming `what`."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not (found := holds()):
            if time.monotonic() > deadline:
                raise CheckFailed(what, expected=f"within {_WAIT_SECONDS:.0f} s", seen="not yet")
            time.sleep(_POLL_SECONDS)
        return found

    def reasons(self, node: str, source: str) -> dict[str, int]:
        """Why the node says that connections from a pod have ended: how many for each reason."""
        address = in_url(self.plan.pod(source).named_address)
        rows = [row for row in self.connections(node) if row["source"].rpartition(":")[0] == address]
        return dict(Counter(str(row["reason"]) for row in rows if row["state"] == "closed" and row["reason"]))

    def refusal(self, node: str, direction: str, word: str) -> str | None:
        """What the node says of the last handshake or stream that was refused in this direction, if `word` is in
        it."""
        rows = [row for row in self.refused(node) if row["direction"] == direction]
        texts = [in_words(row["reason"], row["presented"] or row["peer"], row["expected"]) for row in rows]
        return next((text for text in texts if word in text), None)

    def _start_ledger(self) -> None:
        """What pipeline runs, in partner.example too."""
        ledger, siem = self.plan.pod("ledger"), self.plan.pod("siem")
        logs = self.lab.pod_directory("ledger")
        self.lab.start_app(
            "ledger",
            "pipeline",
            *("--address", "::", "--port", str(PIPELINE_HTTP_PORT), "--lines-port", str(PIPELINE_LINES_PORT)),
            *("--siem", f"{in_url(siem.named_address)}:{SIEM_HTTP_PORT}", "--access-log", str(logs / "access.log")),
        )
        agents.wait_for_listener(ledger, PIPELINE_LINES_PORT, logs / "pipeline.log")
