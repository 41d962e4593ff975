"""(c) An identity is revoked, and taken back."""

from __future__ import annotations

import time

from nodeseal_lab.demo.identity.stage import Stage
from nodeseal_lab.demo.numbered import NumberedConnections
from nodeseal_lab.demo.report import SHOWN_WIDTH
from nodeseal_lab.plan import NAMESPACE, TRUST_DOMAIN


def revoke_and_restore(stage: Stage, of_shipper: NumberedConnections, of_siem: NumberedConnections) -> None:
    """The connections of (b) that go on."""
    report = stage.report
    identity = f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/shipper"
    report.step("c", "An identity is revoked")
    report.did(f'nodeseal revoke identity {identity} --reason "its key leaked"')
    began = time.monotonic()
    stage.does("revoke", "identity", identity, "--reason", "its key leaked", *stage.mesh_option())
    returned = time.monotonic()
    of_shipper.wait_cut()
    last = max(cut.at for cut in of_shipper.cuts)
    report.proved(
        f"all {len(of_shipper.cuts)} connections of shipper are cut, the last {(last - began) * 1000:.0f} ms after the "
        f"command was given, which took {(returned - began) * 1000:.0f} ms itself ({of_shipper.cuts[0].reason})"
    )
    of_siem.wait_for_lines()
    others = of_siem.cuts
    report.check("nobody else's are cut", not others, expected=0, seen=len(others))
    report.proved(f"of siem's {of_siem.count} to the same server {len(others)} are cut: lines go on coming back")
    for node, whose in (("node1", "shipper's own"), ("node2", "pipeline's")):

        def told(node: str = node) -> dict[str, int] | None:
            found = {why: count for why, count in stage.reasons(node, "shipper").items() if "revoked" in why}
            return found if sum(found.values()) == of_shipper.count else None

        found = stage.wait_until(told, f"{node} says of each connection that was cut why")
        report.proved(f"{node}, {whose}: {', '.join(f'{count} times {why!r}' for why, count in found.items())}")
    result = stage.curl("shipper")
    report.check("shipper is refused", result.returncode != 0, expected="an error", seen=result.stdout.strip())
    report.show(stage.on_terminal(SHOWN_WIDTH, "revoke", "list", *stage.mesh_option()))
    report.proved(f"a new connection fails: {result.stderr.strip()}")
    began = time.monotonic()
    stage.does("revoke", "identity", identity, "--undo", *stage.mesh_option())
    stage.wait_until(lambda: stage.curl("shipper").returncode == 0, "shipper is answered again")
    report.proved(
        f"with --undo shipper is answered again, {time.monotonic() - began:.1f} s after the command was given"
    )
    total = of_siem.end()
    lost = total.sent - total.received
    report.check("no line of siem is lost", lost == 0, expected=0, seen=lost)
    report.proved(f"siem's {total.closed} end in order: {total.sent:,} lines sent since (b), {lost} lost")
