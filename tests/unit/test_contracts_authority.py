"""What agents and the certificate service say to each other."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from nodeseal.contracts import authority
from nodeseal.contracts.authority import (
    STATUSES,
    CertificateRequest,
    Message,
    NodeRequest,
    ServiceRefusal,
    ServiceWord,
    decode,
    encode,
)

REQUEST = {"identity": "spiffe://example.org/ns/a/sa/b", "csr": "PEM"}


def test_request_is_the_same_at_the_other_end() -> None:
    sent = CertificateRequest(**REQUEST, reason="renewal", expires=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert decode(encode(sent), CertificateRequest) == sent


def test_fields_of_another_version_are_passed_over() -> None:
    body = json.dumps({**REQUEST, "from_the_future": [1]}).encode()
    assert decode(body, CertificateRequest) == CertificateRequest(**REQUEST)


def test_words_of_another_version_are_taken() -> None:
    assert decode(b'{"word": "from-the-future"}', ServiceRefusal).word == "from-the-future"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (NodeRequest, b""),
        (NodeRequest, b"[]"),
        (NodeRequest, b"{}"),
        (NodeRequest, b'{"csr": ""}'),
        (NodeRequest, b'{"csr": 1}'),
        (NodeRequest, b'{"csr": "x", "node": "' + b"n" * 300 + b'"}'),
        (NodeRequest, b'{"csr": "\xff"}'),
        (NodeRequest, b'{"csr": ' * 20_000),
        (NodeRequest, b"[" * 60_000),
        (CertificateRequest, b'{"csr": "x"}'),
        (CertificateRequest, b'{"csr": "x", "identity": "' + b"i" * 600 + b'"}'),
        (CertificateRequest, b'{"csr": "x", "identity": "i", "expires": "2026-01-02T03:04:05"}'),
    ],
)
def test_what_is_no_request_is_one_line(kind: type[Message], body: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        decode(body, kind)
    assert len(str(caught.value).splitlines()) == 1


def test_every_word_has_a_status() -> None:
    assert set(STATUSES) == set(ServiceWord)


def test_paths_of_operations_are_told_apart() -> None:
    keys = [(one.method, one.path) for one in authority.OPERATIONS]
    assert len(keys) == len(set(keys)) == 6
