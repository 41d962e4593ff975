"""SPIFFE ids of workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

The character sets and limits are those of the SPIFFE-ID standard, sections 2.1 to 2.3
(https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md). The path has the form that Istio and Envoy use; ids
of other trust domains may have any path (`PathId`).
"""

import re
from dataclasses import dataclass
from typing import Self, TypeAlias

MAX_BYTES = 511
"""Longest id in bytes: the splice core keeps one in 512 bytes with its terminating zero (the standard allows 2048)."""

MAX_BYTES_ANYWHERE = 2048
"""Longest id in bytes of any trust domain (SPIFFE-ID, section 2.3)."""

_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


class SpiffeIdError(ValueError):
    """A text or its parts cannot be a workload's SPIFFE id."""


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """The identity of a workload. An instance is always valid: making an invalid one raises SpiffeIdError."""

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        check_segment(self.namespace, "namespace")
        check_segment(self.service_account, "service account")
        # Every allowed character is one byte long.
        length = len(str(self))
        if length > MAX_BYTES:
            raise SpiffeIdError(f"SPIFFE id of {length} bytes is too long: at most {MAX_BYTES} are allowed")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads an id in its URI form.

        Raises SpiffeIdError for anything that is not exactly `spiffe://<td>/ns/<ns>/sa/<sa>`.
        """
        if len(text) > MAX_BYTES:
            raise SpiffeIdError(f"SPIFFE id of {len(text)} characters is too long: at most {MAX_BYTES} are allowed")
        trust_domain, path = split(text)
        parts = path.split("/")
        if len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
            raise SpiffeIdError(
                f"SPIFFE id {text!a} is not of the form {_SCHEME}<trust domain>/ns/<namespace>/sa/<account>"
            )
        return cls(trust_domain=trust_domain, namespace=parts[2], service_account=parts[4])


@dataclass(frozen=True, slots=True, order=True)
class PathId:
    """An id with another path than a SpiffeId has: that of a workload of another trust domain. An instance is always
    valid: making an invalid one raises SpiffeIdError."""

    trust_domain: str
    path: str
    """It begins with a "/"."""

    def __post_init__(self) -> None:
        if not split(str(self))[1] or not self.path.startswith("/"):
            raise SpiffeIdError(f"SPIFFE id {str(self)!a} has no path")
        if len(str(self)) > MAX_BYTES:
            raise SpiffeIdError(f"SPIFFE id of {len(str(self))} bytes is too long: at most {MAX_BYTES} are allowed")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"


Identity: TypeAlias = SpiffeId | PathId
"""Of a workload of whatever trust domain. One id is always of the same of the two types: see parse_identity."""


def parse_identity(text: str) -> Identity:
    """Reads an id in its URI form, with any path. Raises SpiffeIdError."""
    trust_domain, path = split(text)
    parts = path.split("/")
    if len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa":
        return SpiffeId(trust_domain, parts[2], parts[4])
    return PathId(trust_domain, path)


def split(text: str) -> tuple[str, str]:
    """(trust domain, path) of an id of whatever trust domain: "/any/path", or "" for that of a signing certificate.

    Raises SpiffeIdError for what the standard does not allow.
    """
    if not text.startswith(_SCHEME):
        raise SpiffeIdError(f"SPIFFE id {text[:80]!a} does not start with {_SCHEME}")
    if len(text) > MAX_BYTES_ANYWHERE:
        raise SpiffeIdError(
            f"SPIFFE id of {len(text)} characters is too long: at most {MAX_BYTES_ANYWHERE} are allowed"
        )
    trust_domain, slash, path = text.removeprefix(_SCHEME).partition("/")
    check_trust_domain(trust_domain)
    for segment in path.split("/") if slash else ():
        check_segment(segment, "path segment")
    return trust_domain, slash + path


def check_trust_domain(text: str) -> None:
    """Raises SpiffeIdError unless `text` is a trust domain name: 1 to 255 of a-z 0-9 . _ -"""
    if _TRUST_DOMAIN.fullmatch(text) is None:
        raise SpiffeIdError(f"trust domain {text[:80]!a} is not 1 to 255 characters of a-z, 0-9, '.', '_' and '-'")


def check_segment(text: str, what: str) -> None:
    """Raises SpiffeIdError, naming `what`, unless `text` may be a part of a SPIFFE id's path."""
    if _SEGMENT.fullmatch(text) is None or text in (".", ".."):
        raise SpiffeIdError(
            f"{what} {text[:80]!a} is not made of a-z, A-Z, 0-9, '.', '_' and '-' (nor '.' or '..' alone)"
        )
