"""Trust anchors as they are written in the files of a mesh state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nodeseal.documents.document import Node, Problem, Problems
from nodeseal.documents.entries import TrustAnchorEntry
from nodeseal.documents.reader import Placed, Reader, Stated
from nodeseal.documents.schema import Fields, read_text
from nodeseal.mesh.trust_anchor import MOST_ANCHORS, PemError, TrustAnchor

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


def _check_count(_stated: Stated, lists: Iterable[Placed[TrustAnchor]]) -> Iterator[Problem]:
    count = 0
    for placed in lists:
        for index, _anchor in placed.valid():
            count += 1
            if count > MOST_ANCHORS:
                yield placed.problem(index, "pem", f"at most {MOST_ANCHORS} trust anchors in all files", "one more")
                return


TRUST_ANCHOR_READER: Reader[TrustAnchor, TrustAnchorEntry] = Reader(
    TrustAnchorEntry, read_trust_anchor, _take, _check_count
)
