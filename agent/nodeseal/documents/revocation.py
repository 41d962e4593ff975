"""Revocations as they are written in the files of a mesh state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from msgspec import UNSET, UnsetType

from nodeseal.documents.document import Node, Problem, Problems, shown
from nodeseal.documents.entries import RevocationEntry
from nodeseal.documents.reader import Placed, Reader, Stated
from nodeseal.documents.schema import Fields, read_text
from nodeseal.mesh.revocation import (
    REASON_MAX,
    SERIAL_BYTES,
    Revocation,
    revoked_anchor,
    revoked_identity,
    revoked_node,
    revoked_serials,
)
from nodeseal.mesh.spiffe import Identity, PathId, SpiffeIdError, check_trust_domain, parse_identity

WHAT = ("identity", "node", "serials", "anchor")

_SERIAL = re.compile(rf"(?:0x)?([0-9a-fA-F]{{1,{2 * SERIAL_BYTES}}})")
_SERIAL_EXPECTED = f"a serial number of 1 to {2 * SERIAL_BYTES} hexadecimal digits"
_IDENTITY_EXPECTED = "a SPIFFE id such as spiffe://example.org/ns/default/sa/web"
_SINCE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{5,15}(?:Z|\+00:00)"


def parse_serial(text: str) -> int | None:
    """A serial number as people and programs write it: hexadecimal, maybe with "0x" or colons. None: it is none."""
    match = _SERIAL.fullmatch(text.replace(":", ""))
    return None if match is None else int(match[1], 16)


def read_revocation(problems: Problems, node: Node, path: str) -> Revocation | None:
    """None after noting a problem."""
    before = problems.count
    fields = Fields(problems, node, path)
    reason = fields.text("reason", "", expected=f"a text of at most {REASON_MAX} characters")
    if len(reason) > REASON_MAX or not reason.isprintable():
        expected = f"a line of at most {REASON_MAX} characters"
        problems.add(fields.line_of("reason"), fields.at("reason"), expected, shown(reason))
    since = fields.text("since", "", expected="a time in UTC, ISO 8601", pattern=_SINCE)
    stated = [name for name in WHAT if fields.has(name)]
    if stated == ["node", "serials"]:
        stated = ["node"]
    found: Revocation | None = None
    if len(stated) != 1:
        names = " and ".join(stated) if stated else "none of them"
        problems.add(fields.line, fields.path, f"one of {', '.join(WHAT)}", names)
        for name in (*WHAT, "identities", "trust_domain"):
            fields.node(name, "", required=False)
    elif stated == ["identity"]:
        identity = _identity(
            problems, fields.node("identity", _IDENTITY_EXPECTED, required=True), fields.at("identity")
        )
        found = revoked_identity(identity, reason, since) if identity is not None else None
    elif stated == ["node"]:
        name = fields.name("node")
        nodes = fields.items("identities", "a list of SPIFFE ids", required=False)
        read = [_identity(problems, one, f"{fields.at('identities')}[{at}]") for at, one in enumerate(nodes)]
        serials = _serials(fields) if fields.has("serials") else []
        found = revoked_node(name, [one for one in read if one is not None], reason, since, serials)
    elif stated == ["anchor"]:
        fingerprint = fields.text("anchor", expected="the fingerprint of a trust anchor", pattern="[0-9a-f]{64}")
        found = revoked_anchor(fingerprint, reason, since)
    else:
        found = _of_serials(fields, reason, since)
    fields.close()
    return found if problems.count == before else None


def _of_serials(fields: Fields, reason: str, since: str) -> Revocation | None:
    domain = fields.text("trust_domain", "") or None
    if domain is not None:
        try:
            check_trust_domain(domain)
        except SpiffeIdError as error:
            fields.problems.add(fields.line_of("trust_domain"), fields.at("trust_domain"), "a trust domain", str(error))
    numbers = _serials(fields)
    return revoked_serials(numbers, domain, reason, since) if numbers else None


def _serials(fields: Fields) -> list[int]:
    numbers = []
    nodes = fields.items("serials", "a list of serial numbers", required=True)
    if not nodes:
        fields.problems.add(fields.line_of("serials"), fields.at("serials"), "at least one serial number", "none")
    for index, node in enumerate(nodes):
        where = f"{fields.at('serials')}[{index}]"
        text = read_text(fields.problems, node, where, _SERIAL_EXPECTED)
        number = parse_serial(text) if text else 0
        if number is None:
            fields.problems.add(node.line, where, _SERIAL_EXPECTED, shown(text))
        else:
            numbers.append(number)
    return numbers


def _identity(problems: Problems, node: Node | None, where: str) -> Identity | None:
    if node is None or not (text := read_text(problems, node, where, _IDENTITY_EXPECTED)):
        return None
    try:
        return parse_identity(text)
    except SpiffeIdError:
        problems.add(node.line, where, _IDENTITY_EXPECTED, shown(text))
        return None


def _take(entry: RevocationEntry) -> Revocation | None:
    """The quick way: long lists of serial numbers are what is large."""
    reason, since = _or_empty(entry.reason), _or_empty(entry.since)
    if entry.serials is UNSET or entry.identity is not UNSET or entry.node is not UNSET:
        return None
    if (
        entry.anchor is not UNSET
        or entry.identities is not UNSET
        or len(reason) > REASON_MAX
        or not reason.isprintable()
    ):
        return None
    if since and re.fullmatch(_SINCE, since) is None:
        return None
    domain = None if entry.trust_domain is UNSET else entry.trust_domain
    try:
        if domain is not None:
            check_trust_domain(domain)
        return revoked_serials(_numbers(entry.serials), domain, reason, since)
    except ValueError:
        return None


def _numbers(texts: Sequence[str]) -> list[int]:
    """Raises ValueError."""
    numbers = list(map(parse_serial, texts))
    if not numbers or None in numbers:
        raise ValueError
    return numbers  # type: ignore[return-value]


def _or_empty(text: str | UnsetType) -> str:
    return "" if text is UNSET else text


def _check(stated: Stated, lists: Iterable[Placed[Revocation]]) -> Iterator[Problem]:
    """Ids of other trust domains may have any path. One of the own domain that has is a slip, and would revoke
    nobody."""
    for placed in lists:
        for index, one in placed.valid():
            for identity in one.identities:
                if isinstance(identity, PathId) and identity.trust_domain == stated.trust_domain:
                    field = "identities" if one.node is not None else "identity"
                    yield placed.problem(index, field, _IDENTITY_EXPECTED, shown(str(identity)))


REVOCATION_READER: Reader[Revocation, RevocationEntry] = Reader(RevocationEntry, read_revocation, _take, _check)
