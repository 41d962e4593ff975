"""Trust anchors as they are written in the files of a mesh state."""

from __future__ import annotations

from nodeseal.documents.document import Node, Problems
from nodeseal.documents.entries import TrustAnchorEntry
from nodeseal.documents.reader import Reader
from nodeseal.documents.schema import Fields, read_text
from nodeseal.mesh.trust_anchor import PemError, TrustAnchor

_EXPECTED = "one certificate in PEM form"


def read_trust_anchor(problems: Problems, node: Node, path: str) -> TrustAnchor | None:
    """None after noting a problem."""
    before = problems.count
    fields = Fields(problems, node, path)
    anchor = None
    pem = fields.node("pem", _EXPECTED, required=True)
    if pem is not None and (text := read_text(problems, pem, fields.at("pem"), _EXPECTED)):
        try:
            anchor = TrustAnchor.read(text)
        except PemError as error:
            problems.add(fields.line_of("pem"), fields.at("pem"), _EXPECTED, str(error))
    fields.close()
    return anchor if problems.count == before else None


def _take(entry: TrustAnchorEntry) -> TrustAnchor | None:
    try:
        return TrustAnchor.read(entry.pem)
    except PemError:
        return None


TRUST_ANCHOR_READER: Reader[TrustAnchor, TrustAnchorEntry] = Reader(TrustAnchorEntry, read_trust_anchor, _take)
