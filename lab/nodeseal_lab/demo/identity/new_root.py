"""(b) The root of a trust domain is replaced, and no connection is cut."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from nodeseal_lab import trust_domains
from nodeseal_lab.demo.handshake import Root, look
from nodeseal_lab.demo.identity.stage import PARTNER, Stage
from nodeseal_lab.demo.identity.who_has_what import issued
from nodeseal_lab.demo.numbered import NumberedConnections
from nodeseal_lab.demo.report import SHOWN_WIDTH
from nodeseal_lab.demo.traffic import NewConnections
from nodeseal_lab.files import write_atomically
from nodeseal_lab.plan import TRUST_DOMAIN

SERVERS = ("shipper", "siem", "pipeline")
"""Every workload of example.org: each takes tunnels."""
_CONNECTIONS_ALONE = "has connections by it"


def replace_root(stage: Stage) -> tuple[NumberedConnections, NumberedConnections]:
    """Connections that were opened by the new root and go on: shipper's and siem's, to pipeline."""
    report, lab, old = stage.report, stage.lab, stage.root
    report.step("b", "A new root, while connections run")
    report.did(
        "Connections are opened, with a numbered line on each every second, which must come back. One new connection "
        "after another is opened meanwhile, with an HTTP request."
    )
    first = [
        NumberedConnections(lab, "shipper", "pipeline", 150, "before-shipper"),
        NumberedConnections(lab, "siem", "pipeline", 100, "before-siem"),
        NumberedConnections(lab, "shipper", "ledger", 50, "before-ledger"),
    ]
    for one in first:
        one.wait_open()
    report.proved(f"{sum(one.open for one in first)} are open: {'; '.join(one.what for one in first)}, of {PARTNER}")
    with NewConnections(lab) as meanwhile:
        meanwhile.wait_for_answers(1)
        new = trust_both(stage)
        issue_by(stage, new)
        wait_for_new_tunnels(stage, new)
        second = [
            NumberedConnections(lab, "shipper", "pipeline", 60, "after-shipper"),
            NumberedConnections(lab, "siem", "pipeline", 40, "after-siem"),
        ]
        for one in second:
            one.wait_open()
        say_by_which_roots(stage, new, sum(one.open for one in second))
        remove_old(stage, first, second)
        meanwhile.wait_for_answers(10)
    report.check("no new connection fails", not meanwhile.failures, expected="none", seen="; ".join(meanwhile.failures))
    cut = [cut for one in (*first, *second) for cut in one.cuts]
    report.check("no connection is cut", not cut, expected=0, seen=[f"{one.local}: {one.reason}" for one in cut])
    for one in second:
        one.wait_for_lines()
    report.proved(
        f"all the while: {meanwhile.answered} new connections, {meanwhile.answered} answered; {len(cut)} of "
        f"{sum(one.count for one in (*first, *second))} connections cut; lines go on coming back on "
        f"{sum(one.open for one in second)}, which were verified by the new root"
    )
    check_only_root(stage, new, old)
    stage.root = new
    return second[0], second[1]


def trust_both(stage: Stage) -> Root:
    """The new root, which every node trusts now as well."""
    report, directory = stage.report, stage.lab.directory
    stage.does("ca", "init", str(directory / "next"), "--trust-domain", TRUST_DOMAIN)
    old, new = stage.root, Root.of(directory / "next" / "root.pem")
    bundle = trust_domains.bundle_of(directory, TRUST_DOMAIN)
    write_atomically(bundle, old.path.read_text() + new.path.read_text())
    report.did(
        f"{PARTNER} gets both roots, in the bundle that it follows. Then: nodeseal ca init next; nodeseal trust add "
        "ca/root.pem next/root.pem; nodeseal trust status"
    )
    began = time.monotonic()
    stage.does("trust", "add", *stage.mesh_option(), str(old.path), str(new.path))
    stage.wait_until(lambda: trust_status(stage)["complete"], "every node has both roots in its core")
    seconds = time.monotonic() - began
    report.show(stage.on_terminal(SHOWN_WIDTH, "trust", "status", *stage.mesh_option()))
    report.proved(f"both nodes have both roots in their running cores after {seconds:.1f} s ({old.short}, {new.short})")
    return new


def issue_by(stage: Stage, new: Root) -> None:
    """The service issues by the new root, and every workload has a certificate of it."""
    report, lab = stage.report, stage.lab
    before = look(lab, "intruder", "pipeline", (stage.root, new))
    by = [root.short for root in before.roots]
    report.check("pipeline shows the old root's", by == [stage.root.short], expected=stage.root.short, seen=by)
    report.did(
        "The service on node1 gets the new CA: cp next/intermediate.key next/intermediate.pem next/root.pem ca/. "
        "Workloads get their next certificate when the present one is due."
    )
    # So that the old root can still be looked at.
    kept = shutil.copy(stage.root.path, lab.directory / "old-root.pem")
    stage.root = Root.of(lab.directory / kept)
    for name in ("intermediate.key", "intermediate.pem", "root.pem"):
        shutil.copy(lab.directory / "next" / name, trust_domains.ca_of(lab.directory, TRUST_DOMAIN) / name)
    began = time.monotonic()

    def renewed(pod: str) -> Callable[[], bool]:
        return lambda: look(lab, "intruder", pod, (stage.root, new)).roots == (new,)

    for pod in SERVERS:
        stage.wait_until(renewed(pod), f"{pod} shows a certificate of the new root")
    seconds = time.monotonic() - began
    after = look(lab, "intruder", "pipeline", (stage.root, new))
    where = issued(stage).get(after.serial)
    expected = ("node2", after.identity)
    report.check("the service has issued what is shown", where == expected, expected=expected, seen=where)
    report.proved(
        f"handshakes: {stage.root.short} alone verified pipeline's certificate before (serial {before.serial[:12]}), "
        f"and {seconds:.0f} s later {new.short} alone does (serial {after.serial[:12]}, which nodeseal ca issued has); "
        "so it is with shipper's and siem's"
    )


def wait_for_new_tunnels(stage: Stage, new: Root) -> None:
    """New connections are verified anew when the workload that dials gets a certificate."""
    for source in ("shipper", "siem"):

        def verified(source: str = source) -> bool:
            stage.curl(source)
            rows = [row for row in stage.connections("node1") if is_to_pipeline(row, source)]
            youngest = min(rows, key=lambda row: float(row["age_seconds"] or 0.0), default=None)
            return youngest is not None and youngest["anchor"] == new.sha256[:32]

        stage.wait_until(verified, f"new connections of {source} are verified by the new root")


def is_to_pipeline(row: dict[str, Any], source: str) -> bool:
    return bool(row["direction"] == "outbound" and row["source_workload"] == f"default/{source}") and bool(
        row["destination_workload"] == "default/pipeline"
    )


def say_by_which_roots(stage: Stage, new: Root, more: int) -> None:
    """The live connections of node1, by the root that verified the peer."""
    rows = [row for row in stage.connections("node1") if row["state"] == "open" and row["direction"] == "outbound"]
    counts = Counter(str(row["anchor"]) for row in rows)
    names = {
        stage.root.sha256[:32]: f"{stage.root.short}, the old one",
        new.sha256[:32]: f"{new.short}, the new one",
        stage.partner_root.sha256[:32]: f"{stage.partner_root.short}, that of {PARTNER}",
    }
    unknown = set(counts) - set(names)
    stage.report.check("each was verified by a root that is known", not unknown, expected="none else", seen=unknown)
    text = "; ".join(f"{name}: {counts[anchor]}" for anchor, name in names.items())
    stage.report.proved(
        f"{more} more are opened. nodeseal connections on node1, by the root that verified the peers of those that are "
        f"open: {text}"
    )


def remove_old(stage: Stage, first: Sequence[NumberedConnections], second: Sequence[NumberedConnections]) -> None:
    """The old root is trusted no more, once nothing needs it."""
    report, old = stage.report, stage.root
    report.did(f"nodeseal trust remove {old.short}, while connections that it verified are open; then those end.")
    stage.wait_until(lambda: needs_of(stage, old) == {_CONNECTIONS_ALONE}, "connections alone need the old root")
    refused = remove(stage, old)
    report.check("it is refused", refused is not None, expected="a refusal", seen="it was removed")
    report.proved(f"refused: {refused}")
    totals = [one.end() for one in first]
    lost = sum(total.sent - total.received for total in totals)
    closed, opened = sum(total.closed for total in totals), sum(one.count for one in first)
    report.check("all end in order", closed == opened, expected=opened, seen=closed)
    report.check("no line is lost", lost == 0, expected=0, seen=lost)
    report.proved(
        f"the {closed} end in order: {sum(total.sent for total in totals):,} lines sent, {lost} lost, the slowest echo "
        f"took {max(total.longest_ms for total in totals):.0f} ms"
    )
    began = time.monotonic()
    stage.wait_until(lambda: remove(stage, old) is None, "nothing needs the old root")
    report.proved(
        f"nodeseal trust remove {old.short} does it {time.monotonic() - began:.1f} s later; "
        f"{sum(one.open for one in second)} connections by the new root are open"
    )


def check_only_root(stage: Stage, new: Root, old: Root) -> None:
    """That the old root counts for nothing any more, here and in the other trust domain."""
    report = stage.report
    write_atomically(trust_domains.bundle_of(stage.lab.directory, TRUST_DOMAIN), new.path.read_text())
    listed = [
        one["sha256"] for one in json.loads(stage.does("trust", "list", *stage.mesh_option(), "-o", "json"))["anchors"]
    ]
    report.check("one root is left", listed == [new.sha256], expected=[new.short], seen=listed)
    report.proved(f"nodeseal trust list: {new.short} alone; {old.short} is taken out of what {PARTNER} follows as well")


def trust_status(stage: Stage) -> dict[str, Any]:
    """What nodes say of the trust anchors."""
    found: dict[str, Any] = json.loads(stage.nodeseal("trust", "status", *stage.mesh_option(), "-o", "json").stdout)
    return found


def needs_of(stage: Stage, root: Root) -> set[str]:
    """Why nodes need a root."""
    rows = [node for one in trust_status(stage)["anchors"] if one["sha256"] == root.sha256 for node in one["nodes"]]
    return {row["needs"] for row in rows if row["needs"] is not None}


def remove(stage: Stage, root: Root) -> str | None:
    """Why it is not removed; None: it is."""
    done = stage.nodeseal("trust", "remove", *stage.mesh_option(), root.sha256[:16])
    return done.stderr.strip().removeprefix("nodeseal: ") if done.returncode else None
