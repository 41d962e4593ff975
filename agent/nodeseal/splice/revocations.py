"""What is revoked, on its way from an agent into a core, in parts of at most REVOCATIONS_PART digests."""

from __future__ import annotations

from typing import NamedTuple

from nodeseal.contracts.core import REVOCATIONS_MAX, Revocations
from nodeseal.splice.native import REVOKED_SIZE
from nodeseal.splice.transfer import TransferError


class Change(NamedTuple):
    """All that has come, 16 bytes for each digest; see contracts.core.Revocations."""

    revoked: bytes
    restored: bytes
    whole: bool


class IncomingRevocations:
    """The parts that are here. Nothing of them counts before they are complete."""

    def __init__(self) -> None:
        self._parts = 0
        self._revoked = bytearray()
        self._restored = bytearray()

    def add(self, part: Revocations) -> Change | None:
        """Takes a part. The change if it is the last one, and then all parts are forgotten. Raises TransferError when
        another one is due, or they are too many."""
        if part.number == 0:
            self._forget()
        if part.number != self._parts:
            expected = self._parts
            self._forget()
            raise TransferError(f"part {part.number} of the revocations came, part {expected} was expected")
        self._parts += 1
        for digests, into in ((part.revoked, self._revoked), (part.restored, self._restored)):
            into += bytes.fromhex("".join(digests))
            if len(into) > REVOCATIONS_MAX * REVOKED_SIZE:
                self._forget()
                raise TransferError(f"more than {REVOCATIONS_MAX} revocations")
        if not part.last:
            return None
        change = Change(bytes(self._revoked), bytes(self._restored), part.whole)
        self._forget()
        return change

    def _forget(self) -> None:
        self._parts = 0
        self._revoked = bytearray()
        self._restored = bytearray()
