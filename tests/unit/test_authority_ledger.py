"""What the certificate service remembers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.backup import back_up
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.ledger import DATABASE, Entry, Issued, Kind, Ledger, Selection, plain_serial
from nodeseal.authority.retention import Retention
from nodeseal.authority.state_keys import StateKeys
from nodeseal.authority.tokens import TokenState, digest_of
from nodeseal.contracts.authority import TOKEN_PREFIX, ServiceWord

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALL = Selection()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as made:
        yield made


def certificate(number: int, node: str = "node1", identity: str = "spiffe://x/ns/a/sa/b", **more: object) -> Issued:
    values = {"kind": Kind.WORKLOAD, "issued": NOW, "not_after": NOW + HOUR, "reason": "first", "credential": "c"}
    return Issued(serial=f"{number:x}", node=node, identity=identity, key_sha256=bytes([number] * 32), **values | more)  # type: ignore[arg-type]


def record(ledger: Ledger, *certificates: Issued, token: bytes | None = None) -> list[ServiceWord | None]:
    return [why and why.word for why in ledger.record([Entry(one, token) for one in certificates], NOW)]


def test_what_is_recorded_is_there_for_others(ledger: Ledger, tmp_path: Path) -> None:
    record(ledger, certificate(1))
    with Ledger(tmp_path) as another:
        assert list(another.issued(ALL)) == [certificate(1)]


def test_certificates_are_found(ledger: Ledger) -> None:
    one = certificate(0x1A)
    two = certificate(0x1B, "node2", issued=NOW + HOUR)
    three = certificate(0x2B, identity="spiffe://x/ns/a/sa/c", issued=NOW + 2 * HOUR)
    record(ledger, one, two, three)
    assert list(ledger.issued(ALL)) == [three, two, one]
    assert list(ledger.issued(ALL, 2)) == [three, two]
    assert list(ledger.issued(Selection(node="node1"))) == [three, one]
    assert list(ledger.issued(Selection(identity="spiffe://x/ns/a/sa/b"))) == [two, one]
    assert list(ledger.issued(Selection(serial="1"))) == [two, one]
    assert list(ledger.issued(Selection(serial="1b"))) == [two]
    assert list(ledger.issued(Selection("node1", "spiffe://x/ns/a/sa/b", "1"))) == [one]
    assert list(ledger.issued(Selection(serial="%"))) == []
    assert ledger.count(Selection(node="node1")) == 2


def test_serials_of_other_programs_are_understood() -> None:
    assert [plain_serial(text) for text in ("0A:bc", "abc", " ABC\n")] == ["abc"] * 3


def test_key_is_certified_once_for_whomever(ledger: Ledger) -> None:
    record(ledger, certificate(1))
    again = dataclasses.replace(certificate(2, "node2"), key_sha256=certificate(1).key_sha256)
    assert record(ledger, again) == [ServiceWord.KEY_USED]
    assert ledger.count(ALL) == 1


def test_one_that_is_refused_leaves_the_others_of_its_batch(ledger: Ledger) -> None:
    assert record(ledger, certificate(1), certificate(1), certificate(2)) == [None, ServiceWord.KEY_USED, None]
    assert ledger.count(ALL) == 2


def test_batch_is_recorded_whole_or_not_at_all(ledger: Ledger) -> None:
    with pytest.raises(AuthorityError, match=r"database .* fails: "):
        record(ledger, certificate(1), certificate(2, node=None))  # type: ignore[arg-type]
    assert ledger.count(ALL) == 0


# ---- tokens


def test_token_is_known_by_its_digest_alone(ledger: Ledger, tmp_path: Path) -> None:
    token, made = ledger.make_token("node1", HOUR, NOW)
    assert token.startswith(TOKEN_PREFIX)
    assert len(token) == len(TOKEN_PREFIX) + 43
    ledger.close()
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.removeprefix(TOKEN_PREFIX).encode() not in everything
    assert digest_of(token) in everything
    assert digest_of(token).hex().startswith(made.id)


def test_token_is_used_once_also_at_the_same_time(ledger: Ledger, tmp_path: Path) -> None:
    token, _made = ledger.make_token("node1", HOUR, NOW)
    with Ledger(tmp_path) as another:
        outcomes = [*record(ledger, certificate(1), token=digest_of(token))]
        outcomes += record(another, certificate(2), token=digest_of(token))
    assert outcomes == [None, ServiceWord.TOKEN_USED]
    assert [one.serial for one in ledger.issued(ALL)] == ["1"]


@pytest.mark.parametrize("state", [TokenState.EXPIRED, TokenState.REVOKED])
def test_token_that_became_useless_meanwhile(ledger: Ledger, state: TokenState) -> None:
    token, made = ledger.make_token("node1", HOUR, NOW - 2 * HOUR if state is TokenState.EXPIRED else NOW)
    if state is TokenState.REVOKED:
        ledger.revoke_tokens([made.id], NOW)
    assert record(ledger, certificate(1), token=digest_of(token)) == [ServiceWord.TOKEN_USED]
    assert ledger.count(ALL) == 0


def test_token_stays_usable_when_the_certificate_is_not_recorded(ledger: Ledger) -> None:
    token, _made = ledger.make_token("node1", HOUR, NOW)
    record(ledger, certificate(1))
    assert record(ledger, certificate(1), token=digest_of(token)) == [ServiceWord.KEY_USED]
    assert record(ledger, certificate(2), token=digest_of(token)) == [None]


def test_states_of_tokens(ledger: Ledger) -> None:
    used, made = ledger.make_token("used", HOUR, NOW)
    record(ledger, certificate(1), token=digest_of(used))
    _token, revoked = ledger.make_token("revoked", HOUR, NOW)
    ledger.revoke_tokens([revoked.id], NOW)
    ledger.make_token("expired", HOUR, NOW - HOUR)
    ledger.make_token("open", HOUR, NOW)
    found = {one.node: one.state(NOW).value for one in ledger.tokens()}
    assert found == {name: name for name in ("used", "revoked", "expired", "open")}
    (one,) = [one for one in ledger.tokens() if one.id == made.id]
    assert one.used == NOW


def test_tokens_are_revoked_all_or_none(ledger: Ledger) -> None:
    ids = [ledger.make_token(f"node{number}", HOUR, NOW)[1].id for number in range(3)]
    with pytest.raises(AuthorityError, match="there is no open token nosuch; see `nodeseal ca token list`"):
        ledger.revoke_tokens([ids[0], "nosuch"], NOW)
    assert [one.id for one in ledger.revoke_tokens([ids[0], ids[0]], NOW)] == [ids[0]]
    assert {one.id for one in ledger.revoke_tokens(None, NOW)} == set(ids[1:])
    assert ledger.revoke_tokens(None, NOW) == []


# ---- in the course of time


def test_what_ended_long_ago_is_forgotten(ledger: Ledger) -> None:
    record(ledger, certificate(1), certificate(2, not_after=NOW + 3 * HOUR))
    ledger.make_token("node1", HOUR, NOW)
    ledger.make_token("node2", 3 * HOUR, NOW)
    assert ledger.prune(NOW + 2 * HOUR) is False
    assert [one.serial for one in ledger.issued(ALL)] == ["2"]
    assert [one.node for one in ledger.tokens()] == ["node2"]


def test_clock_that_jumps_forward_forgets_nothing(ledger: Ledger) -> None:
    now, passed = [NOW + HOUR], [0.0]
    assert ledger.newest() is None
    record(ledger, certificate(1))
    kept = Retention(90 * 24 * HOUR, ledger.newest(), lambda: now[0], lambda: passed[0])
    assert kept.before() == NOW - 90 * 24 * HOUR
    now[0] += timedelta(days=10_000)
    ledger.prune(kept.before())
    assert ledger.count(ALL) == 1
    passed[0] += 91 * 86_400
    ledger.prune(kept.before())
    assert ledger.count(ALL) == 0


def test_clock_that_was_wrong_before_makes_nothing_forgotten(ledger: Ledger) -> None:
    """A certificate of the future, from then, says nothing of the present."""
    record(ledger, certificate(1), certificate(2, issued=NOW + timedelta(days=10_000)))
    assert Retention(HOUR, ledger.newest(), lambda: NOW, lambda: 0.0).before() == NOW - HOUR


def test_nodes_are_those_with_a_certificate_of_their_own(ledger: Ledger) -> None:
    node = {"kind": Kind.NODE, "identity": "spiffe://x/node/n"}
    record(
        ledger, certificate(1, "node1", **node), certificate(2, "node1", **node),  # type: ignore[arg-type]
        certificate(3, "node2", **node, not_after=NOW), certificate(4, "node3"),  # type: ignore[arg-type]
    )  # fmt: skip
    assert ledger.nodes(NOW) == 1


def test_files_are_their_owners_only(ledger: Ledger, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        record(ledger, certificate(1))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_database_of_a_newer_version_is_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    ledger.close()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(AuthorityError, match="was written by a newer version of nodeseal"):
        Ledger(tmp_path)


def test_what_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"x" * 10_000)
    with pytest.raises(AuthorityError, match=r"issued.db fails: file is not a database"):
        Ledger(tmp_path)


def test_backup_is_the_state_at_one_moment(ledger: Ledger, tmp_path: Path) -> None:
    state, copy = tmp_path, tmp_path / "copy"
    keys = StateKeys.load(state, "example.org", NOW)
    record(ledger, certificate(1))
    assert sorted(back_up(state, copy)) == sorted(path.name for path in copy.iterdir())
    record(ledger, certificate(2))
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in copy.iterdir()} == {0o600}
    with Ledger(copy) as restored:
        assert [one.serial for one in restored.issued(ALL)] == ["1"]
    assert StateKeys.load(copy, "example.org", NOW).pin == keys.pin


def test_backup_that_fails_leaves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with pytest.raises(AuthorityError, match=r"cannot read .*service.pem"):
        back_up(tmp_path, copy)
    assert not copy.exists()
    copy.mkdir()
    with pytest.raises(AuthorityError, match=r"cannot make .*copy: File exists; name a new directory"):
        back_up(tmp_path, copy)
    with pytest.raises(AuthorityError, match="there is no state of a certificate service in"):
        back_up(tmp_path / "nothing", copy)
