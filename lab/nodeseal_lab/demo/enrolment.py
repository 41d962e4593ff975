"""The story of a log pipeline that is enrolled and un-enrolled while it works.

Each step says what it does, measures, and raises CheckFailed where a claim does not hold."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nodeseal_lab.demo.evidence import (
    CARD,
    HBONE_PORT,
    PodFlow,
    amount,
    flow_text,
    flows_with_card,
    handshakes,
    payload,
    with_card,
)
from nodeseal_lab.demo.host_state import pod_state
from nodeseal_lab.demo.pcap import TCP, Packet
from nodeseal_lab.demo.report import SHOWN_WIDTH, CheckFailed, Report
from nodeseal_lab.demo.story import Story
from nodeseal_lab.demo.traffic import LongConnection, NewConnections
from nodeseal_lab.demo.wiretap import Wiretap
from nodeseal_lab.plan import (
    NAMESPACE,
    PIPELINE_HTTP_PORT,
    PIPELINE_LINES_PORT,
    SIEM_HTTP_PORT,
    TRUST_DOMAIN,
    Plan,
    in_url,
)

ENROLLED = ("shipper", "pipeline", "siem")

_CLOSED_PORT = 4444
_WAIT_SECONDS = 20.0
_POLL_SECONDS = 0.05


class EnrolmentStory(Story):
    """One run of it."""

    def __init__(self, name: str, report: Report, *, ipv6: bool = False) -> None:
        super().__init__(Plan.build(name, enrol=False, ipv6=True, ipv6_names=ipv6, issuer="service"), report)
        self.wire: Wiretap
        self.old: LongConnection
        self.new: LongConnection
        self.logged: dict[str, int] = {}

    def run(self) -> None:
        """See Story.run."""
        self.begin()
        self.before_enrolment()
        self.long_connection()
        self.enrolment()
        self.source_address()
        self.closed_port()
        self.identities()
        self.strict_mode()
        self.un_enrolment()
        self.nothing_left("h")

    def begin(self) -> None:
        seconds = self.bring_up()
        report = self.report
        self.wire = Wiretap(self.lab, "node1", towards=self.plan.node("node2").addresses[-1])
        self.pods_before = {pod: pod_state(self.lab, pod) for pod in ENROLLED}
        report.say(
            "nodeseal demo: a log pipeline on two nodes. The nodes and pods are network namespaces; the programs, the "
            "packets and the encryption are real."
        )
        report.say()
        self.say_nodes()
        report.say(
            "  an agent and a core on each node, which get certificates from the certificate service on node1; nobody "
            f"is enrolled; up in {seconds:.1f} s"
        )

    def before_enrolment(self) -> None:
        """(a)"""
        self.report.step("a", "Before enrolment: what the wire shows")
        self.report.did(f'shipper sends "card={CARD}" to pipeline ({self.url}), which forwards it to siem.')
        self.wire.cut()
        answer = self.post_card()
        packets = self.wire.cut()
        flows = flows_with_card(self.plan, packets)
        expected = {("shipper", "pipeline", PIPELINE_HTTP_PORT), ("pipeline", "siem", SIEM_HTTP_PORT)}
        self.report.check(
            "the card number is on the wire in plaintext",
            flows == expected,
            expected=flow_text(expected),
            seen=flow_text(flows),
        )
        self.report.proved(f'siem stored the line: HTTP 200, "{answer}"')
        self.report.proved(
            f"tcpdump on node1's uplink: {amount(packets)}; the card number can be read in "
            f"{len(with_card(packets))} of "
            f"them: {flow_text(flows)}"
        )

    def long_connection(self) -> None:
        """(b)"""
        self.report.step("b", "A long-lived connection, opened before enrolment")
        self.report.did(
            f"shipper opens one TCP connection to pipeline:{PIPELINE_LINES_PORT} and sends a numbered line each 100 "
            "ms; "
            "each must come back."
        )
        self.old = LongConnection(self.lab, "before-enrolment")
        lines = self.old.wait_for_lines(5)
        self.report.proved(f"{self.old.local} -> {self.old.remote}: {lines} lines sent, {lines} came back")

    def enrolment(self) -> None:
        """(c)"""
        report = self.report
        report.step("c", "Enrolment, live")
        report.did(
            f"{', '.join(ENROLLED)} are enrolled (a line each in a YAML file) while shipper opens one new connection "
            "after "
            "another. No program is restarted."
        )
        self.wire.cut()
        lines_before = self.old.lines
        began = time.monotonic()
        with NewConnections(self.lab) as meanwhile:
            self.lab.enrol(*ENROLLED)
            seconds = time.monotonic() - began
            meanwhile.wait_for_answers(10)
        self.check_none_failed(meanwhile, "enrolment")
        report.proved(
            f"enrolled in {seconds:.1f} s; {meanwhile.answered} new connections meanwhile, {meanwhile.answered} "
            "answered"
        )
        during = self.wire.cut()
        self.logged = {pod: len(self.access_log(pod)) for pod in ("siem", "pipeline")}
        answers = [self.post_card() for _ in range(5)]
        self.new = LongConnection(self.lab, "after-enrolment")
        self.new.wait_for_lines(5)
        after = self.wire.cut()
        self.check_encrypted(during, after, len(answers))
        lines = self.old.wait_for_lines(5)
        report.proved(
            f"the connection from (b) never broke: still {self.old.local} -> {self.old.remote}, "
            f"{lines - lines_before} more lines came back since, {lines} in all"
        )

    def check_encrypted(self, during: Sequence[Packet], after: Sequence[Packet], posts: int) -> None:
        """That what came `after` enrolment is TLS 1.3 on port 15008 only; the handshakes may lie `during` it."""
        report = self.report
        hits = with_card(after)
        flows = flows_with_card(self.plan, [*during, *after])
        report.check("no card number on the wire", not hits and not flows, expected="0 packets", seen=flow_text(flows))
        opened = {packet.flow for packet in after if packet.opens and packet.destination_port != HBONE_PORT}
        report.check("new connections are on port 15008 only", not opened, expected="no other port", seen=opened)
        tunnel = [packet for packet in after if packet.payload and HBONE_PORT in packet.ports]
        report.check(
            "the tunnels carry the new connections", bool(tunnel), expected="packets on port 15008", seen="none"
        )
        old = [packet for packet in after if packet.payload and int(self.old.local.rpartition(":")[2]) in packet.ports]
        other = [packet.flow for packet in after if packet.payload and packet not in tunnel and packet not in old]
        report.check(
            "nothing else carries data between the nodes",
            not other,
            expected=f"port {HBONE_PORT} and the connection from (b)",
            seen=other[:3],
        )
        report.proved(
            f"{posts} more log lines with the card number delivered; tcpdump: {len(tunnel)} packets with "
            f"{payload(tunnel):,} bytes on port {HBONE_PORT}, {len(old)} of the connection from (b), no others; the "
            "card "
            f"number is in {len(hits)}"
        )
        hellos = handshakes(self.plan, [*during, *after])
        expected = {("shipper", "pipeline"), ("pipeline", "siem")}
        seen = {(source, destination) for source, destination, _ in hellos}
        report.check("a tunnel for each pair", seen == expected, expected=sorted(expected), seen=sorted(seen))
        for source, destination, hello in hellos:
            report.check(
                f"{source} -> {destination} is TLS 1.3",
                hello.version == "TLS 1.3",
                expected="TLS 1.3",
                seen=hello.version,
            )
        for source, destination in sorted(expected, reverse=True):
            chosen = next(hello for one, other, hello in hellos if (one, other) == (source, destination))
            report.proved(
                f"{source} -> {destination}:{HBONE_PORT}: {chosen.version}, {chosen.cipher_suite} "
                "(ServerHello on the wire)"
            )

    def source_address(self) -> None:
        """(d)"""
        self.report.step("d", "The applications see each other as they would without nodeseal")
        self.report.did("siem and pipeline write the address that they see into their own access logs.")
        for server, client, request in (
            ("siem", self.pipeline, "POST /ingest"),
            ("pipeline", self.shipper, "POST /"),
        ):
            lines = [line for line in self.access_log(server)[self.logged[server] :] if request in line]
            sources = {line.split()[1].rpartition(":")[0] for line in lines}
            self.report.check(
                f"{server} sees {client.name}'s address",
                sources == {in_url(client.named_address)},
                expected=client.named_address,
                seen=sources,
            )
            _, source, entry = lines[-1].split(" ", 2)
            self.report.proved(
                f"{server}'s log, {len(lines)} requests over mTLS, the last: {source} {entry} "
                f"({client.named_address} is {client.name})"
            )

    def closed_port(self) -> None:
        """The rest of (d)"""
        if self.connect_mode("node1", "shipper") != "truthful":
            self.report.did("connect() returns early on this machine: see `connect` in docs/operating.md.")
            return
        self.report.did("shipper dials a port of pipeline at which nobody listens.")
        for address in self.pipeline.addresses:
            seen = self.dial("shipper", str(address), _CLOSED_PORT)
            self.report.check(
                f"a closed port at {address} is refused", seen == "ECONNREFUSED", expected="ECONNREFUSED", seen=seen
            )
            self.report.proved(
                f"connect() to {in_url(address)}:{_CLOSED_PORT}: {seen}, as without nodeseal; it went through the "
                "tunnel and back"
            )

    def identities(self) -> None:
        """(e)"""
        report = self.report
        report.step("e", "nodeseal connections names both identities")
        report.did("The live connections of node2, as nodeseal connections --live shows them:")
        report.show(self.connections_on_terminal("node2", SHOWN_WIDTH))
        port = self.new.local.rpartition(":")[2]
        old_port = self.old.local.rpartition(":")[2]
        for node, direction, peer in (("node1", "outbound", "pipeline"), ("node2", "inbound", "shipper")):
            # An earlier connection, closed by now, may have had the same port.
            connections = [one for one in self.connections(node) if one["state"] != "closed"]
            ours = [one for one in connections if one["source"].endswith(f":{port}") and one["direction"] == direction]
            expected = {"state": "open", "mtls": True, "peer": _identity(peer)}
            seen = [{key: one[key] for key in expected} for one in ours]
            report.check(
                f"{node} shows the new connection with its peer", seen == [expected], expected=expected, seen=seen
            )
            one = ours[0]
            report.proved(
                f"{node} {direction}: {one['source']} -> {one['destination']}, {one['tls']} with {one['peer']}, "
                f"{one['bytes_sent']} bytes sent, {one['bytes_received']} received"
            )
            old = [one for one in connections if one["source"].endswith(f":{old_port}")]
            reasons = [(one["mtls"], one["reason"]) for one in old]
            report.check(
                f"{node} shows the connection from (b) as it is",
                reasons == [(False, "opened-before-enrolment")],
                expected="plaintext: opened-before-enrolment",
                seen=reasons,
            )
        report.proved(f"the connection from (b), on both nodes: no mTLS, opened-before-enrolment (port {old_port})")

    def strict_mode(self) -> None:
        """(f)"""
        report = self.report
        report.step("f", "A pod that is not enrolled: permissive, then strict")
        report.did("intruder (not enrolled) asks pipeline; then pipeline's workload is set to strict.")
        tap = Wiretap(self.lab, "node2", interface=self.intruder.link, towards=self.intruder.named_address)
        result = self.curl("intruder")
        packets = [packet for packet in tap.cut() if packet.protocol == TCP]
        report.check(
            "permissive: intruder is answered", result.returncode == 0, expected="an answer", seen=result.stderr.strip()
        )
        readable = [packet for packet in packets if result.stdout.encode() in packet.payload]
        tunnel = [packet for packet in packets if HBONE_PORT in packet.ports]
        report.check("intruder speaks plaintext", bool(readable), expected="a readable answer", seen="none")
        report.proved(
            f'permissive: intruder is answered "{result.stdout.strip()}" in plaintext (tcpdump: {len(packets)} '
            "packets, "
            f"{len(tunnel)} on port {HBONE_PORT})"
        )
        self.lab.set_mode("pipeline", "strict")
        seen_before = self.requests_from_intruder()
        result = self.curl("intruder")
        report.check(
            "strict: intruder is refused", result.returncode != 0, expected="an error", seen=result.stdout.strip()
        )
        requests = self.requests_from_intruder() - seen_before
        report.check("strict: pipeline never sees intruder's request", requests == 0, expected=0, seen=requests)
        report.proved(f"strict: intruder gets no answer ({result.stderr.strip()}); pipeline saw 0 requests from it")
        self.post_card()
        lines = self.new.wait_for_lines(3)
        report.proved(f"strict: shipper still delivers (HTTP 200), its connection over mTLS goes on (line {lines})")
        self.lab.set_mode("pipeline", "permissive")

    def un_enrolment(self) -> None:
        """(g)"""
        report = self.report
        report.step("g", "Un-enrolment, live")
        report.did(f"{', '.join(ENROLLED)} are un-enrolled while shipper opens one new connection after another.")
        began = time.monotonic()
        lines_before = self.old.lines, self.new.lines
        with NewConnections(self.lab) as meanwhile:
            self.lab.unenrol(*ENROLLED)
            flows = self.post_until_plaintext()
            seconds = time.monotonic() - began
            meanwhile.wait_for_answers(5)
        self.check_none_failed(meanwhile, "un-enrolment")
        report.proved(
            f"{meanwhile.answered} new connections meanwhile, {meanwhile.answered} answered; after {seconds:.1f} s "
            "new ones go "
            f"direct again: the card number is back on the wire ({flow_text(flows)})"
        )
        for what, connection, before in (
            ("from (b), never captured", self.old, lines_before[0]),
            ("opened while enrolled, over mTLS to its end", self.new, lines_before[1]),
        ):
            connection.wait_for_lines(5)
            lines, longest = connection.close()
            report.proved(
                f"the connection {what}: {lines - before} more lines since, {lines} in all, none lost, the slowest "
                "echo took "
                f"{longest:.0f} ms"
            )
        self.wait_until_released()
        report.proved(
            "the pods' namespaces (rules, routes, traffic control, sysctls) are as they were before enrolment"
        )

    def post_until_plaintext(self) -> set[PodFlow]:
        """Sends log lines until a whole one crosses in plaintext again, each of which must be delivered. Raises
        CheckFailed."""
        everything = {("shipper", "pipeline", PIPELINE_HTTP_PORT), ("pipeline", "siem", SIEM_HTTP_PORT)}
        deadline = time.monotonic() + _WAIT_SECONDS
        self.wire.cut()
        while True:
            self.post_card()
            flows = flows_with_card(self.plan, self.wire.cut())
            if flows == everything:
                return flows
            if time.monotonic() > deadline:
                raise CheckFailed("new connections go direct", expected=flow_text(everything), seen=flow_text(flows))

    def wait_until_released(self) -> None:
        """Waits until the agents have taken everything out of the pods' namespaces. Raises CheckFailed."""
        deadline = time.monotonic() + _WAIT_SECONDS
        for pod in ENROLLED:
            while (now := pod_state(self.lab, pod)) != self.pods_before[pod]:
                if time.monotonic() > deadline:
                    raise CheckFailed(
                        f"{pod}'s namespace is as before",
                        expected="no difference",
                        seen=sorted(now ^ self.pods_before[pod]),
                    )
                time.sleep(_POLL_SECONDS)

    def check_none_failed(self, meanwhile: NewConnections, what: str) -> None:
        self.report.check(
            f"no new connection fails during {what}",
            not meanwhile.failures,
            expected=f"{meanwhile.answered + len(meanwhile.failures)} answered",
            seen="; ".join(meanwhile.failures),
        )


def _identity(pod: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{pod}"
