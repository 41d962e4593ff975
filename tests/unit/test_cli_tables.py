"""What people read: tables in a terminal of 100 columns, compared with golden files (--update-golden writes them)."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec import structs

from nodeseal.cli import connections, status, table
from nodeseal.cli.table import duration, note, render, size
from nodeseal.contracts.output import NodeConnection, NodeRefused
from nodeseal.contracts.status import Status
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord, WhyLimited, WhyNotEnrolled, WhyPlaintext, WhyRefused, Word
from nodeseal.node.mesh_state import InForce, MeshFailure
from nodeseal.node.problems import collect
from nodeseal.sources.source import MeshStateError, StateProblem

Golden = Callable[[str, str], None]
WIDTH = 100
HERE = ("example.org",)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A terminal of WIDTH columns, or of as many as a test asks for."""

    def set_width(columns: int) -> None:
        monkeypatch.setattr(table, "width", lambda: columns)

    set_width(WIDTH)
    return set_width


NOTHING_HELD: dict[str, Any] = {"held": {"packets": 0, "last_seconds": None}, "tracked": None}


def workload(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "workload": f"default/{name}",
        "address": "10.77.1.10",
        "enrolled": True,
        "phase": "enrolled",
        "reason": None,
        "detail": None,
        "retry_seconds": None,
        "mode": "permissive",
        "identity": f"spiffe://example.org/ns/default/sa/{name}",
        "certificate": {"remaining_seconds": 86000.0},
        "connections": 0,
        "limits": {},
        **changes,
    }


def node_status(*workloads: dict[str, Any], problems: Sequence[Problem] = (), **changes: Any) -> Status:
    """With what the rest of it says is wrong, and `problems` that it does not."""
    fields = {
        "node": "node1",
        "run_dir": "/run/nodeseal",
        "agent": {"pid": 4101, "version": "0.1.0"},
        "core": RUNNING,
        "mesh": {"directory": "/etc/nodeseal/mesh", "epoch": 7, "error": None, "error_since": None, "in_force": None},
        "capture": {"backend": "ebpf", "why": None, **NOTHING_HELD},
        "workloads": list(workloads),
        **changes,
    }
    answer = msgspec.convert(fields, Status)
    return structs.replace(answer, problems=collect(answer, [SimpleNamespace(problems=lambda: problems)]))


RUNNING = {"pid": 4102, "state": "running", "error": None, "version": "0.1.0", "crashes": 0, "outdated": False}
OLDER = {"pid": 4000, "generation": 2, "version": "0.1.0", "retired": True, "tunnels": 1, "seconds": 190.0}


def test_status_names_what_was_kept_from_leaving_in_plaintext(golden: Golden) -> None:
    why = "nf_tables: Operation not supported; iptables: iptables-restore is not installed: apt-get install iptables"
    capture = {"backend": "ebpf", "why": None, "held": {"packets": 12, "last_seconds": 31.5}, "tracked": why}
    text = status.text(node_status(workload("vector"), capture=capture))
    golden("status_held.txt", text + "\n")


def test_status_where_cores_have_left_their_container(golden: Golden) -> None:
    limited = {"cgroup": "/nodeseal/core-4", "memory": 40_000_000, "memory_limit": 512 << 20, "cpu_limit": 1.5}
    text = status.text(
        node_status(
            workload("shipper"),
            agent={"pid": 4101, "version": "0.1.0", "standby": [3990, 4007]},
            core=RUNNING | {"generation": 4, "place": limited},
            older_cores=[OLDER | {"connections": 17, "place": {"cgroup": "/nodeseal/core-2", "memory": 31 << 20}}],
        )
    )
    golden("status_places.txt", text + "\n")


def test_core_that_does_not_answer_is_not_said_to_run() -> None:
    head, *_rest = status.text(node_status(core=RUNNING | {"error": "it does not answer"})).splitlines()
    assert head == "node node1: agent 0.1.0 (pid 4101), core does not answer (pid 4102)"


def test_what_was_held_long_ago_is_not_worth_a_line() -> None:
    capture = {"backend": "ebpf", "why": None, "held": {"packets": 12, "last_seconds": 600.0}, "tracked": None}
    assert "plaintext" not in status.text(node_status(workload("vector"), capture=capture))


def test_status_with_what_an_upgrade_and_an_absence_left(golden: Golden) -> None:
    absence = {"from": "2026-11-25T08:31:02+00:00", "to": "2026-11-25T08:33:10+00:00", "seconds": 128.0}
    text = status.text(
        node_status(
            workload("shipper", connections=18),
            agent={"pid": 4101, "version": "0.1.0", "absence": absence | {"not_enrolled": ["default/siem"]}},
            core=RUNNING | {"crashes": 2, "outdated": True},
            older_cores=[OLDER | {"connections": 17}, OLDER | {"generation": 3, "connections": None, "retired": False}],
        )
    )
    golden("status_generations.txt", text + "\n")


def test_status_names_the_limits_that_were_reached_lately() -> None:
    now = datetime.now(UTC)
    reached = {"limit": 20000, "refused": 153, "since": now.isoformat(timespec="seconds"), "last_seconds": 3.0}
    limits = {
        "connections": reached,
        "memory": reached | {"limit": 256 << 20, "refused": 1},
        "new_connections": reached | {"last_seconds": 3600.0},
        "descriptors": reached | {"limit": None, "since": "2026-01-02T12:00:00+00:00"},
        "questions": {"limit": None, "refused": 0, "since": None, "last_seconds": None},
    }
    found = node_status(workload("shipper", limits=limits)).problems
    clock = f"{now.astimezone():%H:%M}"
    assert [one.text for one in found] == [
        f"default/shipper: limit reached: connections (20000), 153 refused since {clock}",
        f"default/shipper: limit reached: memory (256 MiB), 1 refused since {clock}",
        "default/shipper: limit reached: descriptors, 153 refused since "
        f"{datetime(2026, 1, 2, 12, tzinfo=UTC).astimezone():%Y-%m-%d %H:%M}",
    ]
    assert {(one.word, one.level, one.about) for one in found} == {("limit-reached", "warning", "default/shipper")}


def connection(**changes: Any) -> NodeConnection:
    fields = {
        "node": "node1",
        "id": 1,
        "workload": "default/shipper",
        "direction": "outbound",
        "source": "10.77.1.10:43512",
        "source_workload": "default/shipper",
        "destination": "10.77.2.10:8080",
        "destination_workload": "default/pipeline",
        "endpoint": "10.77.2.10:8080",
        "endpoint_workload": "default/pipeline",
        "state": "open",
        "mtls": True,
        "peer": "spiffe://example.org/ns/default/sa/pipeline",
        "tls": "TLSv1.3 TLS_AES_128_GCM_SHA256",
        "group": "X25519MLKEM768",
        "signature": "ecdsa_secp256r1_sha256",
        "reason": None,
        "bytes_sent": 1234,
        "bytes_received": 104857600,
        "age_seconds": 252.0,
        "closed_seconds": None,
        **changes,
    }
    return msgspec.convert(fields, NodeConnection)


REASONS = [*WhyPlaintext, *WhyRefused, *WhyLimited]
MIXED = [
    connection(age_seconds=12.0),
    connection(mtls=False, peer=None, reason="opened-before-enrolment", age_seconds=None, source="10.77.1.10:40001"),
    connection(
        mtls=False,
        peer=None,
        reason="destination-not-in-mesh",
        destination="192.0.2.17:443",
        destination_workload=None,
        age_seconds=90061.0,
    ),
    connection(state="connecting", mtls=False, peer=None, bytes_sent=0, bytes_received=0, age_seconds=0.2),
    connection(
        direction="inbound",
        source="10.77.2.11:52918",
        source_workload="default/intruder",
        destination="10.77.1.10:9000",
        destination_workload="default/shipper",
        state="closed",
        mtls=False,
        peer=None,
        reason="source-not-enrolled",
        closed_seconds=31.0,
    ),
    connection(state="closed", closed_seconds=4.0, age_seconds=8.0),
]


def column_of(text: str, header: str, following: str) -> str:
    """All that stands in a column, whatever lines it is in, without blanks."""
    begin, end = (text.index(one) for one in (header, following))
    return "".join("".join(line[begin:end].split()) for line in text.splitlines())


def fits(text: str) -> bool:
    return max(len(line) for line in text.splitlines()) <= WIDTH


def test_status_of_a_healthy_node(golden: Golden) -> None:
    text = status.text(node_status(workload("shipper", connections=12), workload("siem", mode="strict")))
    assert fits(text)
    golden("status_healthy.txt", text + "\n")


def test_status_says_why_a_workload_is_not_enrolled(golden: Golden) -> None:
    detail = (
        "address in use: 10.77.1.11:15008 in /run/netns/siem is held by another process; the mesh port must be "
        "free in every enrolled workload: stop what listens there, or do not enrol this workload"
    )
    failing = workload(
        "siem",
        enrolled=False,
        phase="absent",
        reason="address-in-use",
        certificate=None,
        retry_seconds=7.4,
        detail=detail,
    )
    lacking = Problem(ProblemWord.NOT_ENROLLED, f"default/siem: {detail}", "next try in 7 s", "default/siem")
    unwanted = workload("intruder", enrolled=False, phase="absent", reason="not-wanted", certificate=None)
    expired = workload("shipper", certificate={"remaining_seconds": -5.0})
    text = status.text(node_status(expired, unwanted, failing, problems=[lacking]))
    assert fits(text)
    golden("status_failing.txt", text + "\n")


def test_status_shows_every_line_of_a_bad_mesh_state(golden: Golden) -> None:
    lines = (
        "workloads.yaml:12: workloads[3].address: expected an IPv4 or IPv6 address, found '10.0.0.999'",
        "workloads.yaml:14: workloads[3].mood: expected 'mode', found the unknown field 'mood'",
    )
    since = datetime(2026, 11, 23, 11, 19, 35, tzinfo=UTC)
    found = MeshFailure(MeshStateError(map(StateProblem, lines)), since, InForce.FORMER)
    trouble = {
        "directory": "/etc/nodeseal/mesh",
        "epoch": 7,
        "error": str(found.error),
        "error_since": since.isoformat(),
        "in_force": found.in_force.value,
    }
    text = status.text(node_status(workload("shipper"), mesh=trouble, problems=list(found.problems())))
    assert fits(text)
    golden("status_mesh_error.txt", text + "\n")


def test_status_without_core_or_workloads(golden: Golden) -> None:
    core = RUNNING | {"pid": None, "state": "not-running", "error": "the core did not start: out of memory"}
    text = status.text(node_status(core=core))
    assert fits(text)
    golden("status_no_core.txt", text + "\n")


def test_status_with_long_names_still_fits(golden: Golden) -> None:
    long = workload("x", identity="spiffe://example.org/ns/a-long-namespace/sa/a-service-account-with-a-long-name")
    long["workload"] = "a-long-namespace/a-workload-with-a-very-long-name-0"
    text = status.text(node_status(long))
    assert fits(text)
    golden("status_long.txt", text + "\n")


def test_status_says_what_passes_by_the_core(golden: Golden) -> None:
    exclude = {
        "inbound": {"ports": ["9090", "8000-8010"], "from": ["10.0.0.0/8", "fd00::/8"]},
        "outbound": {"ports": ["5432"], "to": ["169.254.169.254/32"]},
    }
    one_way = {"inbound": {"ports": [], "from": []}, "outbound": {"ports": ["1-1023"], "to": []}}
    text = status.text(
        node_status(
            workload("shipper", exclude=exclude),
            workload("siem", mode="strict", exclude=one_way),
            workload("pipeline", exclude=None),
            node_addresses=["10.77.0.1", "10.77.1.1", "fd77::1", "fd77:0:0:1::1", "192.0.2.0/24"],
            past_core={"from-node": 1204, "excluded-inbound": 17, "excluded-outbound": 0, "application-mark": 1},
        )
    )
    assert fits(text)
    golden("status_past_core.txt", text + "\n")


def test_status_says_what_captures(golden: Golden) -> None:
    why = "no cgroup v2 tree is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)"
    text = status.text(
        node_status(
            workload("shipper", capture="ebpf"),
            workload("siem", capture="iptables"),
            workload("guest", enrolled=False, reason="not-wanted", capture=None),
            capture={"backend": "iptables", "why": why, **NOTHING_HELD},
        )
    )
    assert fits(text)
    golden("status_capture.txt", text + "\n")


def test_connections_past_the_core_say_why(golden: Golden) -> None:
    past = {"id": None, "mtls": False, "peer": None, "tls": None, "age_seconds": None}
    probe = {"direction": "inbound", "source": "10.77.2.1:40112", "source_workload": None}
    rows = [
        connection(**past, **probe, reason="from-node", bytes_sent=112, bytes_received=74),
        connection(**past, reason="excluded-port", destination="10.77.3.9:5432", destination_workload="default/db"),
        connection(**past, reason="excluded-range", destination="169.254.169.254:80", destination_workload=None),
        connection(),
    ]
    text = connections.text(rows, several_nodes=True, trust_domains=HERE)
    assert fits(text)
    golden("connections_past_core.txt", text + "\n")


def test_connections_with_room_show_whole_identities(golden: Golden) -> None:
    text = connections.text(
        [connection(peer="spiffe://a.b/ns/x/sa/y", source_workload=None)],
        several_nodes=False,
        trust_domains=HERE,
    )
    assert fits(text)
    assert "spiffe://a.b/ns/x/sa/y" in text
    golden("connections_room.txt", text + "\n")


def test_connections_shorten_the_identity_before_they_drop_an_address(golden: Golden) -> None:
    text = connections.text([connection()], several_nodes=False, trust_domains=HERE)
    assert fits(text)
    assert "shipper 10.77.1.10:43512" in text
    golden("connections_mtls.txt", text + "\n")


def test_connections_of_all_kinds(golden: Golden) -> None:
    text = connections.text(MIXED, several_nodes=False, trust_domains=HERE)
    assert fits(text)
    golden("connections_mixed.txt", text + "\n")


def test_how_connections_under_mutual_tls_are_protected(golden: Golden) -> None:
    older = connection(group=None, signature=None, age_seconds=8000.0)  # of a core that does not say
    text = connections.text([*MIXED, older], several_nodes=False, trust_domains=HERE, tls=True)
    assert fits(text)
    golden("connections_tls.txt", text + "\n")
    plain = [row for row in MIXED if not row.mtls]
    none = connections.text(plain, several_nodes=False, trust_domains=HERE, tls=True)
    assert none == "no connections under mutual TLS"


IPV6 = [
    connection(
        source="[fd77::1:10]:43512", destination="[fd77::2:10]:8080", endpoint="[fd77::2:10]:8080", age_seconds=12.0
    ),
    connection(
        source="[fd77::1:10]:43513",
        destination="[2001:db8:1:2::17]:443",
        destination_workload=None,
        mtls=False,
        peer=None,
        reason="destination-not-in-mesh",
    ),
]


def test_connections_over_ipv6(golden: Golden) -> None:
    text = connections.text(IPV6, several_nodes=False, trust_domains=HERE)
    assert fits(text)
    golden("connections_ipv6.txt", text + "\n")


def test_connections_with_the_longest_addresses_still_say_which_they_are(golden: Golden) -> None:
    longest = "[2001:db8:1234:5678:9abc:def0:1234:{}]:{}"
    outbound = connection(
        destination=longest.format("1111", 443),
        destination_workload=None,
        mtls=False,
        peer=None,
        reason="destination-not-in-mesh",
    )
    inbound = connection(
        direction="inbound",
        source=longest.format("2222", 52918),
        source_workload=None,
        mtls=False,
        peer=None,
        reason="source-not-in-mesh",
    )
    text = connections.text([outbound, inbound, *IPV6], several_nodes=True, trust_domains=HERE)
    assert fits(text)
    assert longest.format("1111", 443) in column_of(text, "DESTINATION", "MTLS WITH")
    assert longest.format("2222", 52918) in column_of(text, "SOURCE", "DESTINATION")
    golden("connections_ipv6_long.txt", text + "\n")


def test_connections_of_several_nodes_name_them(golden: Golden) -> None:
    text = connections.text(
        [*MIXED, connection(node="node2", direction="inbound")], several_nodes=True, trust_domains=HERE
    )
    assert fits(text)
    golden("connections_nodes.txt", text + "\n")


def test_connections_with_long_names_still_fit() -> None:
    row = connection(
        source_workload=f"a-long-namespace/{'s' * 60}", destination_workload=f"a-long-namespace/{'d' * 60}"
    )
    assert fits(connections.text([row], several_nodes=True, trust_domains=HERE))


def refusal(**changes: Any) -> NodeRefused:
    fields = {
        "node": "node1",
        "workload": "default/pipeline",
        "direction": "inbound",
        "kind": "handshake",
        "status": None,
        "source": "192.0.2.44",
        "source_workload": None,
        "destination": "10.77.2.10:15008",
        "destination_workload": "default/pipeline",
        "peer": None,
        "reason": "peer certificate is a CA certificate",
        "count": 3,
        "first_seconds": 252.0,
        "last_seconds": 8.0,
        **changes,
    }
    return msgspec.convert(fields, NodeRefused)


REFUSED = [
    refusal(),
    refusal(
        kind="stream",
        status=401,
        source="10.77.2.11",
        source_workload="default/edge",
        destination="10.77.2.10:8080",
        peer="spiffe://example.org/ns/default/sa/siem",
        reason="identity-mismatch",
        count=1,
        first_seconds=2.0,
        last_seconds=2.0,
    ),
    refusal(kind="plaintext", source="fd77::9", destination="10.77.2.10:8080", reason="strict", last_seconds=7300.0),
    refusal(
        workload="default/shipper",
        direction="outbound",
        source="10.77.1.10",
        source_workload="default/shipper",
        destination="10.77.3.10:15008",
        destination_workload="default/siem",
        reason="peer refused this workload's certificate: it does not trust its CA",
        presented="spiffe://example.org/ns/default/sa/shipper",
        last_seconds=30.0,
    ),
    refusal(
        source="10.77.2.12",
        reason="peer is of another trust domain",
        presented="spiffe://other.example/ns/default/sa/stranger",
        expected="example.org",
        last_seconds=7400.0,
    ),
    refusal(
        direction="outbound",
        source="10.77.1.10",
        destination="10.77.3.10:15008",
        reason="peer has another identity than expected",
        presented="spiffe://example.org/ns/default/sa/siem",
        expected="spiffe://example.org/ns/default/sa/pipeline",
        last_seconds=7500.0,
    ),
]


def test_refused_peers_are_a_table_of_their_own(golden: Golden) -> None:
    text = connections.refused_text(REFUSED, several_nodes=False, trust_domains=HERE)
    assert fits(text)
    golden("connections_refused.txt", text + "\n")


def test_refused_peers_of_several_nodes_name_them(golden: Golden) -> None:
    text = connections.refused_text(REFUSED, several_nodes=True, trust_domains=HERE)
    assert fits(text)
    golden("connections_refused_nodes.txt", text + "\n")


def test_no_connections() -> None:
    assert connections.text([], several_nodes=False, trust_domains=HERE) == "no connections"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (104_857_600, "105 MB"),
        (5 * 10**15, "5.0 PB"),
    ],
)
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-1, "0s"), (59.9, "59s"), (61, "1m01s"), (7199, "1h59m"), (86000, "23h53m"), (180000, "2d")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_table_gives_way_where_it_may_and_loses_nothing() -> None:
    text = render(("A", "B"), [("a" * 60, "one-two/three " * 5)], fold=(1,))
    assert fits(text)
    lines = text.splitlines()
    assert lines[1].split() == ["a" * 60, "one-two/three", "one-two/three"]
    assert [line.split() for line in lines[2:]] == [["one-two/three", "one-two/three"], ["one-two/three"]]


def test_word_without_an_end_is_divided() -> None:
    text = render(("A", "B"), [("a" * 60, "b" * 60)], fold=(1,))
    assert fits(text)
    assert text.count("b") == 60


def test_table_keeps_its_columns_in_a_terminal_that_is_too_narrow(terminal: Callable[[int], None]) -> None:
    terminal(12)
    text = render(("NAME", "WHY"), [("a-long-name-of-something", "a-long-reason-for-it")], fold=(0, 1))
    assert [line.split() for line in text.splitlines()] == [
        ["NAME", "WHY"],
        ["a-long-", "a-long-"],
        ["name-of-", "reason-"],
        ["somethin", "for-it"],
        ["g"],
    ]


def test_nothing_is_folded_in_a_pipe(terminal: Callable[[int], None], golden: Golden) -> None:
    terminal(table._UNLIMITED)
    golden("connections_pipe.txt", connections.text(MIXED, several_nodes=True, trust_domains=HERE) + "\n")


@pytest.mark.parametrize("columns", [60, 80, 100, 132])
def test_reasons_and_identities_are_whole_at_any_width(terminal: Callable[[int], None], columns: int) -> None:
    terminal(columns)
    rows = [
        connection(mtls=False, peer=None, reason=reason, source=f"10.77.1.10:{port}")
        for port, reason in enumerate(sorted(REASONS), 20000)
    ]
    foreign = connection(peer="spiffe://other.example/ns/default/sa/pipeline", state="closed", closed_seconds=3.0)
    text = connections.text([*rows, foreign], several_nodes=True, trust_domains=HERE)
    column = column_of(text, "MTLS WITH", "  SENT")
    assert "…" not in text
    for reason in REASONS:
        assert f"no:{reason}" in column
    assert "spiffe://other.example/ns/default/sa/pipeline" in column


@pytest.mark.parametrize("reason", ["the peer's policy denied it", "identity-mismatch", "the peer reset the stream"])
def test_connection_that_failed_in_its_tunnel_does_not_look_like_a_good_one(
    terminal: Callable[[int], None], reason: str
) -> None:
    terminal(200)
    good, bad = (
        connections.text(
            [connection(state="closed", closed_seconds=4.0, reason=why)],
            several_nodes=False,
            trust_domains=HERE,
        )
        for why in (None, reason)
    )
    assert "failed" not in good
    assert f"sa/pipeline, failed: {reason}" in bad


class TestWidth:
    """Of what standard output really is: a terminal of 70 columns, or a pipe."""

    CODE = "from nodeseal.cli import table; print('x' * 100 if table.width() > 1000 else table.width())"

    def on_terminal(self, **environment: str) -> str:
        leader, follower = pty.openpty()
        try:
            termios.tcsetwinsize(follower, (24, 70))
            self.run(follower, environment)
            return os.read(leader, 1000).decode().strip()
        finally:
            os.close(leader)
            os.close(follower)

    def run(self, stdout: int, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment
        return subprocess.run(
            [sys.executable, "-c", self.CODE], stdout=stdout, env=variables, text=True, timeout=30, check=True
        )

    def test_is_that_of_the_terminal(self) -> None:
        assert self.on_terminal() == "70"

    def test_is_what_the_user_says_of_the_terminal(self) -> None:
        assert self.on_terminal(COLUMNS="55") == "55"
        assert self.on_terminal(COLUMNS="wide") == "70"

    def test_has_no_limit_in_a_pipe(self) -> None:
        assert self.run(subprocess.PIPE, {"COLUMNS": "55"}).stdout.strip() == "x" * 100


def test_note_keeps_long_words_whole() -> None:
    path = f"/a/{'very-' * 30}long-path"
    assert path in note(f"see {path}")


WORDS: tuple[type[Word], ...] = (ProblemWord, WhyNotEnrolled, WhyPlaintext, WhyRefused, WhyLimited)


@pytest.mark.parametrize("kind", WORDS)
def test_every_word_says_what_it_means_and_what_to_do(kind: type[Word]) -> None:
    for word in kind:
        assert word.meaning.endswith(".")
        assert word.remedy.endswith(".")
        assert "|" not in word.meaning + word.remedy
        assert kind(word.value) is word
