"""What nobody asks for: mutual TLS that is silently lost is named on every node that can know it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.capture.workload import CaptureTarget
from nodeseal.contracts.core import CoreStats, WorkloadStats
from nodeseal.contracts.refusal import Refusal
from nodeseal.cores.client import CoreClient
from nodeseal.documents.document import read_content
from nodeseal.identity.credentials import Credentials
from nodeseal.identity.embedded import EmbeddedIssuer
from nodeseal.local import run_directory
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.model import Phase, Workload, WorkloadName
from nodeseal.mesh.trust import Need, Trust
from nodeseal.node import vigil as vigil_module
from nodeseal.node.peers import claimed_twice, foreign, missing
from nodeseal.node.vigil import Handshakes, Vigil
from nodeseal.sources.directory.publications import publish, read_publication
from nodeseal.sources.source import Description
from support.agent_fakes import FakeCapture, mesh, workload

SOURCE = Description("/mesh", "/mesh/enrolled", "share that directory with it")
OURS, OTHERS = Trust(frozenset({"a" * 32}), "a" * 32), Trust(frozenset({"b" * 32}), "b" * 32)
BOTH = Trust(OURS.anchors | OTHERS.anchors, "b" * 32)


def remote(name: str = "pipeline", node: str = "node2", **changes: Any) -> Workload:
    return workload(name, None, node=node, **changes)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# ---- what other nodes have published


def test_misspelt_node_is_named_with_the_one_that_was_meant() -> None:
    (problem,) = missing(mesh(remote(node="hots2")), "host1", SOURCE, {"host1": None, "host2": None})
    assert problem.word == "node-unknown"
    assert problem.text == (
        "the mesh state wants default/pipeline enrolled on node hots2, and no node of that name has published anything "
        "in /mesh/enrolled: traffic with it is in plaintext"
    )
    assert problem.remedy == "is host2 meant? Else start its agent, or share that directory with it"


def test_node_that_is_not_there_yet_is_not_taken_for_one_of_another_number() -> None:
    (problem,) = missing(mesh(remote(node="host12")), "host1", SOURCE, {"host1": None, "host2": None})
    assert problem.remedy == "correct the name, start its agent, or share that directory with it"


def test_node_that_is_misspelt_after_ones_own_name_is_noticed_where_it_is_missing() -> None:
    (problem,) = missing(mesh(remote(node="hots2")), "host2", SOURCE, {"host2": None})
    assert (problem.word, problem.about) == ("node-unknown", "hots2")
    assert problem.remedy.startswith("is host2 meant?")


def test_publications_that_were_not_copied_are_missed() -> None:
    """Every agent writes its own into its own copy of the directory."""
    many = [remote(f"w{number}") for number in range(7)]
    (problem,) = missing(mesh(*many), "node1", SOURCE, {"node1": None})
    assert problem.word == "node-unknown"
    assert "default/w0, default/w1, default/w2, default/w3, default/w4 and 2 more" in problem.text
    assert "share that directory" in problem.remedy


def test_workload_that_its_node_has_not_enrolled_is_named() -> None:
    state = mesh(remote(), remote("other", phase=Phase.ENROLLED), remote("unwanted", wanted=False))
    (problem,) = missing(state, "node1", SOURCE, {"node2": None})
    assert (problem.word, problem.about, problem.word.level) == ("peer-not-enrolled", "node2", "warning")
    assert problem.text.startswith("node node2 has not enrolled default/pipeline, as the mesh state asks")


def test_address_that_two_claim_is_named_with_both() -> None:
    one, other = (
        remote("a", addresses=(IPv4Address("10.0.0.9"),)),
        remote("b", "node3", addresses=(IPv4Address("10.0.0.9"),)),
    )
    (problem,) = claimed_twice(mesh(one, other))
    assert problem.text == (
        "default/a (on node2) and default/b (on node3) claim the address 10.0.0.9, so it counts for neither: "
        "it is nobody's"
    )
    (problem,) = claimed_twice(mesh(one, other.in_phase(Phase.ENROLLED)))
    assert problem.text.endswith("connections to it are refused, and plaintext from it")
    assert not list(claimed_twice(mesh(one)))


def test_own_workloads_and_published_ones_are_not_missed() -> None:
    own = workload("shipper", None)
    assert list(missing(mesh(own, remote(phase=Phase.ENROLLED)), "node1", SOURCE, {})) == []


@pytest.mark.parametrize(
    ("trust", "text"),
    [
        (OTHERS, "nodes node1 and node2 have different CAs (root aaaaaaaa and root bbbbbbbb)"),
        (BOTH, "node node1 does not trust the CA of node node2 (root bbbbbbbb)"),
        (Trust(OTHERS.anchors, "a" * 32), "node node2 does not trust the CA of node node1 (root aaaaaaaa)"),
        (Trust(BOTH.anchors, "a" * 32), None),
        (OURS, None),
        (None, None),
    ],
)
def test_other_ca_is_named(trust: Trust | None, text: str | None) -> None:
    found = [problem.text for problem in foreign(mesh(remote()), "node1", {"node2": trust}, OURS)]
    assert found == ([] if text is None else [f"{text}: no connection between their workloads works"])


def test_ca_of_a_node_of_another_trust_domain_is_another_one() -> None:
    publishers = {"node2": OTHERS}
    assert list(foreign(mesh(remote(trust_domain="other.org")), "node1", publishers, OURS)) == []
    both = mesh(remote(trust_domain="other.org"), remote("of-ours"))
    assert [problem.about for problem in foreign(both, "node1", publishers, OURS)] == ["node2"]


def test_ca_of_a_node_without_workloads_does_not_matter() -> None:
    assert list(foreign(mesh(remote()), "node1", {"gone": OTHERS}, OURS)) == []


def test_publications_carry_the_ca(tmp_path: Path) -> None:
    names = [WorkloadName("default", "pipeline")]
    path = tmp_path / "enrolled" / "node2.yaml"
    assert publish(tmp_path, "node2", names, BOTH)
    trusts = f"{'a' * 32} {'b' * 32}"
    assert path.read_text().startswith(
        f"# Written by the agent of node2; do not edit. CA: {'b' * 32} trusts: {trusts}\n"
    )
    assert not publish(tmp_path, "node2", names, BOTH)
    publication = read_publication(read_content(path, "node2.yaml"), None)
    assert (publication.names, publication.trust, publication.problems) == (frozenset(names), BOTH, ())
    needing = Trust(BOTH.anchors, BOTH.issuer, (Need("a" * 32, 0, 500), Need("c" * 32, 1_800_000_000)))
    publish(tmp_path, "node2", names, needing)
    assert path.read_text().splitlines()[1:3] == [
        f"# needs: {'a' * 32}=0 {'c' * 32}=1800000000",
        f"# connections: {'a' * 32}=500",
    ]
    publication = read_publication(read_content(path, "node2.yaml"), None)
    assert (publication.names, publication.trust, publication.problems) == (frozenset(names), needing, ())
    # A former version writes nothing of it, and reads what this one writes: it is in a comment.
    publish(tmp_path, "node2", names)
    publication = read_publication(read_content(path, "node2.yaml"), None)
    assert (publication.names, publication.trust, publication.problems) == (frozenset(names), None, ())


@pytest.mark.parametrize("head", ["# x; do not edit. CA: " + "a" * 32, "# x; do not edit. CA: zz trusts: zz", ""])
def test_ca_that_makes_no_sense_is_none(tmp_path: Path, head: str) -> None:
    path = tmp_path / "node2.yaml"
    path.write_text(f'{head}\nnode: "node2"\nenrolled: []\n')
    publication = read_publication(read_content(path, "node2.yaml"), None)
    assert (publication.names, publication.trust) == (frozenset(), None)


def trust_of(ca: Path) -> Trust:
    return Credentials(EmbeddedIssuer(ca, timedelta(hours=1))).trust


def test_trust_of_a_ca_directory_follows_its_roots(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    for name in ("one", "two"):
        init_authority(tmp_path / name, trust_domain="example.org", now=now)
    one, two = (trust_of(tmp_path / name) for name in ("one", "two"))
    assert one.anchors == {one.issuer}
    assert one.issuer != two.issuer
    roots = [(tmp_path / name / "root.pem").read_text() for name in ("one", "two")]
    shutil.copytree(tmp_path / "one", tmp_path / "both")
    (tmp_path / "both" / "root.pem").write_text("".join(roots))
    assert trust_of(tmp_path / "both") == Trust(one.anchors | two.anchors, one.issuer)


# ---- what was enrolled here


class Place:
    """A vigil of node1, with a workload whose namespace is a file."""

    def __init__(self, tmp_path: Path) -> None:
        self.run_dir = tmp_path
        self.netns = tmp_path / "netns"
        self.netns.touch()
        self.clock = Clock()
        self.restart()
        self.capture = FakeCapture()
        self.cgroups = {"/system.slice/shipper.service"}
        self.shipper = workload("shipper", self.netns)

    def restart(self) -> None:
        """The vigil of the next agent."""
        core: Any = SimpleNamespace()
        self.vigil = Vigil("node1", SOURCE, self.run_dir, core, 2.0, clock=self.clock)
        self.vigil.handshakes = SimpleNamespace(look=self.nothing, problems=tuple)  # type: ignore[assignment]

    async def nothing(self) -> None:
        """No handshake has failed."""

    async def has_cgroup(self, path: str) -> bool:
        return path in self.cgroups

    def note(self, host: HostPlace | None = None) -> None:
        target = CaptureTarget("default/shipper", str(self.netns), self.shipper.addresses, host=host)
        self.vigil.leftovers.note(self.shipper.key, self.capture.make(target, "capturing"))

    def words(self, *workloads: Workload, publishers: dict[str, Trust | None] | None = None) -> list[str]:
        """What is wrong when it has stood for long enough."""
        self.vigil.take(mesh(*workloads), publishers if publishers is not None else {"node2": None}, None)
        list(self.vigil.problems())
        self.clock.now += 12.0
        return [problem.word.value for problem in self.vigil.problems()]


@pytest.fixture
def place(tmp_path: Path) -> Any:
    made = Place(tmp_path)
    yield made
    made.capture.close()


def test_workload_that_went_to_a_node_that_does_not_have_it(place: Place) -> None:
    place.note()
    assert place.words(replace(place.shipper, node="node2")) == ["peer-not-enrolled", "was-enrolled"]
    (problem,) = [one for one in place.vigil.problems() if one.word == "was-enrolled"]
    assert problem.text == (
        f"default/shipper was enrolled on this node (node1) and still runs in {place.netns}, but the mesh state gives "
        "it the node node2: its traffic is in plaintext"
    )
    assert problem.remedy == "correct 'node' there, or end it"
    # It has really moved.
    assert place.words(replace(place.shipper, node="node2", phase=Phase.ENROLLED)) == []


def test_workload_that_the_mesh_state_has_lost(place: Place) -> None:
    place.note()
    assert place.words(remote(phase=Phase.ENROLLED)) == ["was-enrolled"]
    (problem,) = place.vigil.problems()
    assert "but the mesh state no longer has it" in problem.text
    assert problem.remedy == "say 'enrolled: false' there if that is meant, or end it"


def test_pod_that_ends_is_forgotten(place: Place) -> None:
    place.note()
    asyncio.run(place.vigil.look(place.has_cgroup))
    assert place.words(remote(phase=Phase.ENROLLED)) == ["was-enrolled"]
    place.netns.unlink()
    asyncio.run(place.vigil.look(place.has_cgroup))
    assert place.words(remote(phase=Phase.ENROLLED)) == []


def test_service_that_ends_is_forgotten(place: Place) -> None:
    place.note(HostPlace("/system.slice/shipper.service", ()))
    asyncio.run(place.vigil.look(place.has_cgroup))
    assert place.words(remote(phase=Phase.ENROLLED)) == ["was-enrolled"]
    place.cgroups.clear()
    asyncio.run(place.vigil.look(place.has_cgroup))
    assert place.words(remote(phase=Phase.ENROLLED)) == []


def test_workload_that_comes_back_is_forgotten(place: Place) -> None:
    place.note()
    place.vigil.leftovers.forget(place.shipper.key)
    assert place.words(remote(phase=Phase.ENROLLED)) == []


def test_restarted_agent_remembers_what_was_enrolled(place: Place) -> None:
    place.note()
    place.restart()
    assert place.words(remote(phase=Phase.ENROLLED)) == ["was-enrolled"]
    place.netns.unlink()
    asyncio.run(place.vigil.look(place.has_cgroup))
    place.restart()
    assert place.words(remote(phase=Phase.ENROLLED)) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"shipper": {}}', '{"default/shipper": {"netns": "x"}}'])
def test_damaged_note_of_what_was_enrolled_is_no_obstacle(
    place: Place, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (place.run_dir / run_directory.LEFTOVERS).write_text(text)
    place.restart()
    assert place.words(remote(phase=Phase.ENROLLED)) == []
    (line,) = caplog.messages
    assert line.startswith(f"cannot read {place.run_dir}/left-over.json: ")
    place.note()
    place.restart()
    assert place.words(remote(phase=Phase.ENROLLED)) == ["was-enrolled"]


# ---- when it is told


def test_what_does_not_stand_is_not_told(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Nodes learn of a change at different times."""
    caplog.set_level("INFO")

    def look(*workloads: Workload) -> list[str]:
        place.vigil.take(mesh(*workloads), {"node2": None}, None)
        asyncio.run(place.vigil.look(place.has_cgroup))
        return [problem.word.value for problem in place.vigil.problems()]

    assert look(remote()) == []
    place.clock.now += 11.9
    assert look(remote()) == []
    assert look(remote(phase=Phase.ENROLLED)) == []
    assert look(remote()) == []
    place.clock.now += 11.9
    assert look(remote()) == []
    assert caplog.text == ""
    place.clock.now += 0.2
    for _time in range(3):
        assert look(remote()) == ["peer-not-enrolled"]
    assert look(remote(phase=Phase.ENROLLED)) == []
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "peer-not-enrolled",
        "no longer peer-not-enrolled",
    ]


# ---- handshakes


class FakeCore:
    """Cores with one counter and whom they refused; `looks` counts the looks at these."""

    def __init__(self) -> None:
        self.failed = 0
        self.looks = 0
        self.refusals: list[Refusal] = []

    async def call_all(self, method: Callable[..., Any]) -> list[tuple[None, Any]]:
        if method is CoreClient.stats:
            row = WorkloadStats(key=1, workload="default/shipper", tls_failed=self.failed)
            return [(None, (CoreStats(), (row,)))]
        self.looks += 1
        return [(None, self.refusals)]


UNTRUSTED = "peer refused this workload's certificate: it does not trust its CA"


def refusal(**changes: Any) -> Refusal:
    row = {"workload": "default/shipper", "kind": "handshake", "direction": "outbound", "source": "10.77.1.10"}
    row |= {"destination": "10.77.2.10:15008", "reason": UNTRUSTED, "count": 3, "first_ms": 9000, "last_ms": 500}
    return Refusal(**(row | changes))


def test_tunnel_that_does_not_come_to_be_is_named_with_peer_and_reason() -> None:
    core, clock = FakeCore(), Clock()
    handshakes = Handshakes(core, clock)  # type: ignore[arg-type]
    core.refusals = [
        refusal(kind="plaintext", reason="strict", last_ms=1),
        refusal(direction="inbound", reason="peer shows no certificate", last_ms=2),
        refusal(workload=None, last_ms=3),
        refusal(destination="10.77.2.11:15008", last_ms=70_000),
        refusal(),
    ]
    asyncio.run(handshakes.look())
    assert (list(handshakes.problems()), core.looks) == ([], 0)
    core.failed = 1
    asyncio.run(handshakes.look())
    (problem,) = handshakes.problems()
    assert (problem.word, problem.about) == ("handshake-failed", "default/shipper")
    assert problem.text == f"default/shipper: no tunnel to 10.77.2.10:15008: {UNTRUSTED}"
    clock.now += vigil_module._SHOWN_S
    assert list(handshakes.problems()) == []


@pytest.mark.parametrize(
    ("destination", "why", "remedy"),
    [
        ("10.77.2.99:80", "since nobody knows whose address that is", "add 10.77.2.99 to the 'addresses' of default/b"),
        ("10.77.2.10:80", "node1 did not know whom it dialled", "see which address default/a dials"),
    ],
)
def test_plaintext_of_an_enrolled_workload_names_what_to_add(destination: str, why: str, remedy: str) -> None:
    core, clock = FakeCore(), Clock()
    handshakes = Handshakes(core, clock)  # type: ignore[arg-type]
    state = mesh(
        remote("a", "node1", addresses=(IPv4Address("10.77.1.10"),)),
        remote("b", "node2", addresses=(IPv4Address("10.77.2.10"),)),
    )
    found = refusal(workload="default/b", kind="plaintext", direction="inbound", reason="source-is-enrolled")
    core.refusals = [msgspec.structs.replace(found, destination=destination)]
    core.failed = 1
    asyncio.run(handshakes.look())
    (problem,) = handshakes.strays.problems(state)
    assert (problem.word, problem.about) == ("plaintext-from-enrolled", "default/b")
    assert f"plaintext of default/a (on node1, 10.77.1.10) to {destination} was refused" in problem.text
    assert why in problem.text
    assert problem.remedy.startswith(remedy)
    assert not list(handshakes.strays.problems(mesh()))
    clock.now += 601
    assert not list(handshakes.strays.problems(state))


def test_strangers_who_fail_cost_a_look_in_half_a_minute_and_are_no_problem() -> None:
    core, clock = FakeCore(), Clock()
    handshakes = Handshakes(core, clock)  # type: ignore[arg-type]
    core.refusals = [refusal(direction="inbound", reason="peer shows no certificate")]
    for _look in range(12):
        core.failed += 100
        asyncio.run(handshakes.look())
        clock.now += 5.0
    assert list(handshakes.problems()) == []
    assert core.looks == 2


def test_failures_of_yesterday_are_not_told() -> None:
    """The core keeps them for a day, and an agent that starts sees a counter that is not zero."""
    core = FakeCore()
    core.failed, core.refusals = 3, [refusal(last_ms=3_600_000)]
    handshakes = Handshakes(core, Clock())  # type: ignore[arg-type]
    asyncio.run(handshakes.look())
    assert (list(handshakes.problems()), core.looks) == ([], 1)


def test_core_that_does_not_answer_holds_up_nothing_else(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vigil_module, "_CORE_PATIENCE_S", 0.01)

    class Hanging:
        async def call_all(self, _method: Callable[..., Any]) -> list[tuple[None, Any]]:
            await asyncio.Event().wait()
            return []

    place.vigil.handshakes = Handshakes(Hanging(), place.clock)  # type: ignore[arg-type]
    assert place.words(remote()) == ["peer-not-enrolled"]
    asyncio.run(place.vigil.look(place.has_cgroup))
    assert "peer-not-enrolled: node node2" in caplog.text


def test_counters_that_begin_anew_with_a_core_are_no_failure() -> None:
    core = FakeCore()
    handshakes = Handshakes(core, Clock())  # type: ignore[arg-type]
    core.failed = 7
    asyncio.run(handshakes.look())
    core.failed = 0
    asyncio.run(handshakes.look())
    assert core.looks == 1
