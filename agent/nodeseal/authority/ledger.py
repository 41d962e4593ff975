"""What the certificate service has issued, and its join tokens: a SQLite database in its state directory.

A certificate is in it before it is given away. No key is in it, nor a token: their digests are. SQLite is in WAL mode
and syncs at every commit, so that what was recorded outlives the machine's power; many records share one commit (see
recorder.py). Readers and `nodeseal ca token` use it beside the service, each for a moment.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Self

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.refused import Refused
from nodeseal.authority.tokens import Token, TokenState, digest_of, id_of, new_token
from nodeseal.contracts.authority import ServiceWord
from nodeseal.linux.permissions import keep_owner

DATABASE = "issued.db"

_VERSION = 1
_BUSY_S = 10.0
_PRUNED_AT_ONCE = 5_000
_SCHEMA = """
CREATE TABLE issued (
  serial TEXT PRIMARY KEY,
  kind TEXT NOT NULL,
  node TEXT NOT NULL,
  identity TEXT NOT NULL,
  key_sha256 BLOB NOT NULL UNIQUE,
  issued INTEGER NOT NULL,
  not_after INTEGER NOT NULL,
  reason TEXT NOT NULL,
  credential TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX issued_by_time ON issued (issued);
CREATE INDEX issued_by_node ON issued (node, issued);
CREATE INDEX issued_by_identity ON issued (identity, issued);
CREATE INDEX issued_by_end ON issued (not_after);
CREATE TABLE tokens (
  digest BLOB PRIMARY KEY,
  node TEXT NOT NULL,
  created INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  used INTEGER,
  revoked INTEGER
) STRICT, WITHOUT ROWID;
"""


class Kind(StrEnum):
    """What a certificate is for."""

    WORKLOAD = "workload"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued. Times are in UTC, whole seconds."""

    serial: str
    """Lower hexadecimal."""
    kind: Kind
    node: str
    """The node that asked."""
    identity: str
    key_sha256: bytes
    """Over the certificate's SubjectPublicKeyInfo."""
    issued: datetime
    not_after: datetime
    reason: str
    """What the node asked it for."""
    credential: str
    """What the node proved itself with: "token ID" or "certificate SERIAL"."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be recorded at once: a certificate and, for a node that joins, the token that is used up by it."""

    issued: Issued
    token: bytes | None = None
    """Its digest."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which certificates are asked for; None: all. `serial`: also the beginning of one. `valid`: at that time."""

    node: str | None = None
    identity: str | None = None
    serial: str | None = None
    valid: datetime | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """What the database has, at a time."""

    nodes: int = 0
    """With a certificate that has not expired: of their own, or where nodes have none, of a workload."""
    last_hour: int = 0
    """Certificates that were issued in the hour before."""
    valid: int = 0
    """Certificates that have not expired."""


class Ledger:
    """The open database. Belongs to one thread. Every method raises AuthorityError when the database fails."""

    def __init__(self, state: Path) -> None:
        """Makes what is not there. Raises AuthorityError."""
        self.path = state / DATABASE
        with _failures(self.path):
            # SQLite makes its files with the mode of this one and, as root, with its owner.
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                keep_owner(descriptor, state)
            finally:
                os.close(descriptor)
            self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._migrate()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of it."""
        self._db.close()

    # ---- certificates

    def record(self, entries: Sequence[Entry], now: datetime) -> list[Refused | None]:
        """Records them in one transaction. Of each: None, or why it is not recorded and must not be given away."""
        with self._transaction():
            return [self._record(entry, now) for entry in entries]

    def issued(self, selection: Selection, limit: int | None = None) -> Iterator[Issued]:
        """The certificates, the newest first, at most `limit`."""
        where, values = _where(selection)
        with _failures(self.path):
            rows = self._db.execute(
                f"SELECT * FROM issued {where} ORDER BY issued DESC, serial LIMIT ?",  # noqa: S608 (made of constants)
                (*values, -1 if limit is None else limit),
            )
            for serial, kind, node, identity, key, issued, not_after, reason, credential in rows:
                yield Issued(
                    serial, Kind(kind), node, identity, key, _time(issued), _time(not_after), reason, credential
                )

    def count(self, selection: Selection) -> int:
        """How many certificates these are."""
        where, values = _where(selection)
        with _failures(self.path):
            (found,) = self._db.execute(f"SELECT count(*) FROM issued {where}", values).fetchone()  # noqa: S608
        return int(found)

    def nodes(self, now: datetime, kind: Kind = Kind.NODE) -> int:
        """How many nodes have a certificate of this kind that has not expired."""
        with _failures(self.path):
            (found,) = self._db.execute(
                "SELECT count(DISTINCT node) FROM issued WHERE not_after > ? AND kind = ?",
                (_seconds(now), kind.value),
            ).fetchone()
        return int(found)

    def counts(self, now: datetime, kind: Kind = Kind.NODE) -> Counts:
        """How many there are. `kind`: see `nodes`."""
        at = _seconds(now)
        with _failures(self.path):
            last_hour, valid = self._db.execute(
                "SELECT (SELECT count(*) FROM issued WHERE issued > ?), "
                "(SELECT count(*) FROM issued WHERE not_after > ?)",
                (at - 3600, at),
            ).fetchone()
        return Counts(self.nodes(now, kind), int(last_hour), int(valid))

    def newest(self) -> datetime | None:
        """When the last certificate was issued; None: there is none."""
        with _failures(self.path):
            (found,) = self._db.execute("SELECT max(issued) FROM issued").fetchone()
        return None if found is None else _time(found)

    def prune(self, before: datetime) -> bool:
        """Forgets some of the certificates and tokens that ended before then. Whether there are more."""
        end = _seconds(before)
        with self._transaction():
            found = [
                self._db.execute(
                    f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} WHERE {ended} < ? LIMIT ?)",  # noqa: S608
                    (end, _PRUNED_AT_ONCE),
                ).rowcount
                for table, key, ended in (("issued", "serial", "not_after"), ("tokens", "digest", "expires"))
            ]
        return _PRUNED_AT_ONCE in found

    # ---- tokens

    def make_token(self, node: str, lifetime: timedelta, now: datetime) -> tuple[str, Token]:
        """A fresh token for a node: itself, which is never seen again, and what is known of it."""
        token = new_token()
        digest = digest_of(token)
        created = now.astimezone(UTC).replace(microsecond=0)
        try:
            expires = created + lifetime
        except OverflowError:
            raise AuthorityError("a token cannot be valid for so long; give a shorter time") from None
        with self._transaction():
            self._db.execute(
                "INSERT INTO tokens (digest, node, created, expires) VALUES (?, ?, ?, ?)",
                (digest, node, _seconds(created), _seconds(expires)),
            )
        return token, Token(id_of(digest), node, created, expires)

    def tokens(self) -> list[Token]:
        """All that are not forgotten, the newest first."""
        with _failures(self.path):
            rows = self._db.execute(
                "SELECT digest, node, created, expires, used, revoked FROM tokens ORDER BY created DESC, digest"
            ).fetchall()
        return [_token(row) for row in rows]

    def token(self, digest: bytes) -> Token | None:
        """The one with this digest."""
        with _failures(self.path):
            row = self._db.execute(
                "SELECT digest, node, created, expires, used, revoked FROM tokens WHERE digest = ?", (digest,)
            ).fetchone()
        return _token(row) if row is not None else None

    def revoke_tokens(self, ids: Iterable[str] | None, now: datetime) -> list[Token]:
        """Makes the tokens with these ids useless; None: all that are open. Which ones that were. Raises AuthorityError
        for an id that is not an open token's, and revokes none then."""
        open_ones = {one.id: one for one in self.tokens() if one.state(now) is TokenState.OPEN}
        wanted = list(open_ones) if ids is None else list(dict.fromkeys(ids))
        for one in wanted:
            if one not in open_ones:
                raise AuthorityError(f"there is no open token {one}; see `nodeseal ca token list`")
        with self._transaction():
            for one in wanted:
                self._db.execute(
                    "UPDATE tokens SET revoked = ? WHERE substr(lower(hex(digest)), 1, ?) = ? AND used IS NULL",
                    (_seconds(now), len(one), one),
                )
        return [open_ones[one] for one in wanted]

    # ---- the whole

    def try_writing(self) -> None:
        """Writes what is there already."""
        with self._transaction():
            self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def copy_to(self, path: Path) -> None:
        """A copy of the database as it is now, whole, while others write. `path` must not be there."""
        with _failures(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with contextlib.closing(sqlite3.connect(path)) as copy:
                self._db.backup(copy)
                # One file, and no other beside it.
                copy.execute("PRAGMA journal_mode = DELETE")

    def _record(self, entry: Entry, now: datetime) -> Refused | None:
        one = entry.issued
        if entry.token is not None:
            used = self._db.execute(
                "UPDATE tokens SET used = ? WHERE digest = ? AND used IS NULL AND revoked IS NULL AND expires > ?",
                (_seconds(now), entry.token, _seconds(now)),
            )
            if used.rowcount == 0:
                return Refused(
                    ServiceWord.TOKEN_USED, "the token was used meanwhile; make another: nodeseal ca token create"
                )
        inserted = self._db.execute(
            "INSERT INTO issued VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key_sha256) DO NOTHING",
            (
                one.serial, one.kind.value, one.node, one.identity, one.key_sha256, _seconds(one.issued),
                _seconds(one.not_after), one.reason, one.credential,
            ),
        )  # fmt: skip
        if inserted.rowcount == 0:
            if entry.token is not None:
                self._db.execute("UPDATE tokens SET used = NULL WHERE digest = ?", (entry.token,))
            return Refused(
                ServiceWord.KEY_USED,
                f"the key of the request for {one.identity} was certified before; make a fresh one",
            )
        return None

    def _migrate(self) -> None:
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                # Not executescript(), which would end the transaction.
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
            elif version > _VERSION:
                raise AuthorityError(f"{self.path} was written by a newer version of nodeseal; use that one")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _failures(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # Some failures have ended it already (https://sqlite.org/lang_transaction.html).
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def plain_serial(text: str) -> str:
    """A serial number as the database has it, whatever form other programs show it in: "0A:BC" is "abc"."""
    return text.replace(":", "").strip().lower().lstrip("0")


def _where(selection: Selection) -> tuple[str, list[str | int]]:
    parts: list[str] = []
    values: list[str | int] = []
    if selection.node is not None:
        parts.append("node = ?")
        values.append(selection.node)
    if selection.identity is not None:
        parts.append("identity = ?")
        values.append(selection.identity)
    if selection.serial is not None:
        # A range, which uses the index as LIKE would not.
        parts.append("serial >= ? AND serial < ? || 'g'")
        values += [selection.serial, selection.serial]
    if selection.valid is not None:
        parts.append("not_after > ?")
        values.append(_seconds(selection.valid))
    return ("WHERE " + " AND ".join(parts) if parts else ""), values


def _token(row: tuple[bytes, str, int, int, int | None, int | None]) -> Token:
    digest, node, created, expires, used, revoked = row
    return Token(
        id_of(digest),
        node,
        _time(created),
        _time(expires),
        None if used is None else _time(used),
        None if revoked is None else _time(revoked),
    )


def _seconds(when: datetime) -> int:
    return int(when.timestamp())


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@contextlib.contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise AuthorityError(f"the certificate service's database {path} fails: {error}") from None
    except OSError as error:
        raise AuthorityError(
            f"cannot use the certificate service's database {path}: {error.strerror or error}; correct its owner and "
            "mode, or the setting `state`"
        ) from error
