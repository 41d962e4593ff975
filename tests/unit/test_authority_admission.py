"""Who may ask for which identity: the whole table."""

from __future__ import annotations

import re

import pytest

from nodeseal.authority.admission import Residents, admit
from nodeseal.authority.refused import Refused
from nodeseal.contracts.authority import STATUSES, ServiceWord
from nodeseal.mesh.address import parse_address
from nodeseal.mesh.model import Mesh, Mode, Phase, Workload, WorkloadName
from nodeseal.mesh.revocation import revoked_identity, revoked_node, revoked_serials
from nodeseal.mesh.spiffe import SpiffeId


def workload(name: str, node: str, number: int, *, account: str = "", wanted: bool = True) -> Workload:
    return Workload(
        WorkloadName("default", name), account or name, node, (parse_address(f"10.0.0.{number}"),), None, wanted,
        Mode.PERMISSIVE,
    )  # fmt: skip


RESIDENTS = Residents.of(
    Mesh.build(
        "example.org",
        [
            workload("web", "node1", 1),
            workload("web-2", "node2", 2, account="web"),
            workload("db", "node2", 3),
            workload("idle", "node1", 4, wanted=False),
            workload("half", "node1", 5, account="shared", wanted=False),
            workload("other-half", "node1", 6, account="shared"),
            workload("alone", "node3", 7, wanted=False),
        ],
    )
)
REVOKED = Residents.of(
    Mesh.build(
        "example.org",
        [workload("web", "node1", 1), workload("db", "node1", 2), workload("mail", "node2", 3)],
        revocations=[
            revoked_identity(SpiffeId("example.org", "default", "web"), "leaked"),
            revoked_node("node2", ()),
            revoked_serials([5]),
        ],
    )
)
ID = "spiffe://example.org/ns/default/sa/"


@pytest.mark.parametrize(
    ("node", "identity", "why"),
    [
        ("node1", f"{ID}db", None),
        ("node1", f"{ID}web", f"{ID}web is revoked (leaked); see 'nodeseal revoke list'"),
        ("node2", f"{ID}mail", "the node node2 is revoked; see 'nodeseal revoke list'"),
    ],
)
def test_nothing_is_issued_for_what_is_revoked(node: str, identity: str, why: str | None) -> None:
    if why is None:
        assert str(admit(REVOKED, node, identity)) == identity
        return
    with pytest.raises(Refused, match=re.escape(why)) as caught:
        admit(REVOKED, node, identity)
    assert caught.value.word in (ServiceWord.IDENTITY_REVOKED, ServiceWord.NODE_REVOKED)
    assert STATUSES[caught.value.word] == 403


@pytest.mark.parametrize(
    ("node", "identity", "word"),
    [
        ("node1", f"{ID}web", None),
        ("node2", f"{ID}web", None),  # one account on two nodes
        ("node2", f"{ID}db", None),
        ("node1", f"{ID}shared", None),  # one of its two workloads is wanted
        ("node1", f"{ID}idle", ServiceWord.IDENTITY_NOT_ENROLLED),
        ("node3", f"{ID}alone", ServiceWord.IDENTITY_NOT_ENROLLED),
        ("node1", f"{ID}db", ServiceWord.IDENTITY_NOT_ON_NODE),
        ("node2", f"{ID}idle", ServiceWord.IDENTITY_NOT_ON_NODE),
        ("node1", f"{ID}nobody", ServiceWord.IDENTITY_NOT_ON_NODE),
        ("node1", f"{ID}web-2", ServiceWord.IDENTITY_NOT_ON_NODE),  # the name of a workload is no account
        ("node1", "spiffe://example.org/ns/other/sa/web", ServiceWord.IDENTITY_NOT_ON_NODE),
        ("node9", f"{ID}web", ServiceWord.IDENTITY_NOT_ON_NODE),
        ("", f"{ID}web", ServiceWord.IDENTITY_NOT_ON_NODE),
        ("NODE1", f"{ID}web", ServiceWord.IDENTITY_NOT_ON_NODE),
        ("node1", f"{ID}WEB", ServiceWord.IDENTITY_NOT_ON_NODE),
        ("node1", "spiffe://example.com/ns/default/sa/web", ServiceWord.IDENTITY_OF_ANOTHER_DOMAIN),
        ("node1", "spiffe://sub.example.org/ns/default/sa/web", ServiceWord.IDENTITY_OF_ANOTHER_DOMAIN),
        ("node1", "", ServiceWord.IDENTITY_MALFORMED),
        ("node1", "web", ServiceWord.IDENTITY_MALFORMED),
        ("node1", "https://example.org/ns/default/sa/web", ServiceWord.IDENTITY_MALFORMED),
        ("node1", "SPIFFE://example.org/ns/default/sa/web", ServiceWord.IDENTITY_MALFORMED),
        ("node1", "spiffe://example.org", ServiceWord.IDENTITY_MALFORMED),
        ("node1", "spiffe://example.org/node/node1", ServiceWord.IDENTITY_MALFORMED),
        ("node1", f"{ID}web/", ServiceWord.IDENTITY_MALFORMED),
        ("node1", f"{ID}web?x", ServiceWord.IDENTITY_MALFORMED),
        ("node1", f"{ID}w%65b", ServiceWord.IDENTITY_MALFORMED),
        ("node1", f"{ID}web\n", ServiceWord.IDENTITY_MALFORMED),
        ("node1", f"{ID}web\0", ServiceWord.IDENTITY_MALFORMED),
        ("node1", f"{ID}..", ServiceWord.IDENTITY_MALFORMED),
        ("node1", f"{ID}*", ServiceWord.IDENTITY_MALFORMED),
        ("node1", f"{ID}wеb", ServiceWord.IDENTITY_MALFORMED),  # a Cyrillic letter
        ("node1", ID + "w" * 600, ServiceWord.IDENTITY_MALFORMED),
    ],
)
def test_table(node: str, identity: str, word: ServiceWord | None) -> None:
    if word is None:
        assert str(admit(RESIDENTS, node, identity)) == identity
        return
    with pytest.raises(Refused) as caught:
        admit(RESIDENTS, node, identity)
    assert caught.value.word is word
    assert len(str(caught.value).splitlines()) == 1
    assert 400 <= STATUSES[word] < 404


def test_only_what_may_change_by_itself_is_worth_another_attempt() -> None:
    def again(node: str, identity: str) -> bool:
        with pytest.raises(Refused) as caught:
            admit(RESIDENTS, node, identity)
        return caught.value.retry_after is not None

    assert again("node1", f"{ID}idle")
    assert again("node1", f"{ID}db")
    assert not again("node1", "spiffe://example.com/ns/default/sa/web")
    assert not again("node1", "web")


def test_whether_a_node_has_published_is_no_matter() -> None:
    """A workload needs its certificate before it is published as enrolled."""
    mesh = Mesh.build("example.org", [workload("web", "node1", 1).in_phase(Phase.ENROLLED), workload("db", "node1", 2)])
    residents = Residents.of(mesh)
    assert {str(admit(residents, "node1", ID + name)) for name in ("web", "db")} == {ID + "web", ID + "db"}
