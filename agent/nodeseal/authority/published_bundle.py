"""The mesh's trust anchors as other trust domains get them: a SPIFFE bundle, whose sequence number grows with each
change, also over restarts of the service and where its state is lost.

The anchors are those that the mesh's own nodes trust: the mesh state's, and the root by which the CA issues; as long as
the mesh state has none, those of the CA directory. So a root that `nodeseal trust add` puts in reaches others before
anything is issued by it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path

from cryptography import x509

from nodeseal.authority.certificates import fingerprint, parse, pem
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.live_signer import HeldSigner
from nodeseal.authority.rules import signing_fault
from nodeseal.authority.spiffe_bundle import has_jwk, write_jwks
from nodeseal.mesh.trust_anchor import TrustAnchor

log = logging.getLogger("nodeseal.ca")

FILE_NAME = "bundle-endpoint.json"


class PublishedBundle:
    """`document` is the bundle; None: it is not known yet. All methods may wait for a disk; one at a time."""

    def __init__(self, state: Path, signer: HeldSigner, refresh_hint: int, now: Callable[[], datetime]) -> None:
        """`state`: the service's directory; `refresh_hint`: in seconds; `now`: the wall clock."""
        self.document: bytes | None = None
        self.anchors: Collection[TrustAnchor] | None = None
        """Of the mesh state. None: it was not read yet. Whoever follows it replaces this as a whole."""
        self.why: str | None = None
        """What is wrong, one line."""
        self._path = state / FILE_NAME
        self._signer = signer
        self._refresh_hint = refresh_hint
        self._now = now
        self._made_of: tuple[object, object] | None = None
        self._told = (0, "")
        """The last sequence number that was told, and the digest of the anchors that have it."""

    def refresh(self) -> None:
        """Makes the document anew if anything that it is made of has changed. Raises AuthorityError when there is no
        root that a bundle can have: one without keys would say that all are revoked."""
        signer, anchors = self._signer.signer, self.anchors
        if signer is None or anchors is None:
            return
        if self._made_of is not None and self._made_of[0] is signer and self._made_of[1] == anchors:
            return
        roots = [signer.root, *_usable(anchors)] if anchors else parse(signer.bundle_pem.encode())
        each = sorted({fingerprint(root): root for root in roots if has_jwk(root)}.items())
        left_out = [fingerprint(root)[:16] for root in roots if not has_jwk(root)]
        why = f"the trust anchor {left_out[0]} has a key of a kind that no bundle can have" if left_out else None
        if not each:
            raise AuthorityError(why or "there is no trust anchor")
        text = "".join(pem(root) for _, root in each)
        sequence, failure = self._sequence(hashlib.sha256(text.encode()).hexdigest())
        self.why = failure or (f"{why}: it is left out for other trust domains" if why is not None else None)
        document = write_jwks(text, sequence, self._refresh_hint)
        # What could not be written is tried again.
        self._made_of = (signer, anchors) if failure is None else None
        if document == self.document:
            return
        self.document = document
        log.info("the bundle for other trust domains has %d trust anchors, sequence number %d", len(each), sequence)

    def _sequence(self, digest: str) -> tuple[int, str | None]:
        """That of the anchors with this digest: the one that they had, or a new one. And why it cannot be kept."""
        before, of = self._kept()
        if of == digest:
            self._told = before, digest
            return before, None
        told, of = self._told
        # By the clock, so that it grows where the file was lost.
        sequence = told if of == digest else max(before + 1, told + 1, int(self._now().timestamp()))
        self._told = sequence, digest
        try:
            draft = self._path.with_name(f"{FILE_NAME}.new")
            draft.write_text(json.dumps({"sequence": sequence, "anchors": digest}), encoding="ascii")
            draft.replace(self._path)
        except OSError as error:
            return sequence, f"cannot write {self._path}: {error.strerror or error}; correct its owner"
        return sequence, None

    def _kept(self) -> tuple[int, str]:
        """The last sequence number, and the digest of the anchors that have it."""
        try:
            said = json.loads(self._path.read_bytes())
            return int(said["sequence"]), str(said["anchors"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read, and is made anew: %s", self._path, error)
        return 0, ""


def _usable(anchors: Collection[TrustAnchor]) -> list[x509.Certificate]:
    """Those by which nodes verify anybody."""
    found = []
    for one in anchors:
        try:
            (cert,) = parse(one.pem.encode())
        except ValueError:
            continue
        if signing_fault(cert) is None:
            found.append(cert)
    return found
