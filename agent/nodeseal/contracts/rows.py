"""What all messages of the local API have in common.

Their keys are a contract with users' scripts. Both ends tolerate each other's version: a field that is missing has its
default, one that is unknown is passed over. Times are ISO 8601 in UTC; a field that ends in `_seconds` counts from the
moment of the answer. docs/reference/local-api.md is made of these types, so each field says what it is.
"""

from __future__ import annotations

from msgspec import Struct


class Row(Struct, frozen=True):
    """What all rows have in common: once made, they do not change."""


class Parameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Of an operation, from the query of its URL. One that is unknown is refused: a filter must not be passed over."""


class Incomplete(Row, frozen=True):
    """A line of a stream that is no row: what could not be listed."""

    error: str = ""


class Failure(Row, frozen=True):
    """Why a request was not carried out, as application/problem+json (RFC 9457)."""

    type: str = "about:blank"
    title: str = ""
    """What the status means."""
    status: int = 0
    """The HTTP status."""
    detail: str = ""
    """What went wrong, one line."""
