"""Federated trust domains as they are written in the files of a mesh state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nodeseal.documents.document import Node, Problem, Problems, shown
from nodeseal.documents.entries import FederatedEntry
from nodeseal.documents.reader import Placed, Reader, Stated
from nodeseal.documents.schema import Fields
from nodeseal.mesh.federated import Federated
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain

_DOMAIN_EXPECTED = "1 to 255 characters of a-z, 0-9, '.', '_' and '-'"


def read_federated(problems: Problems, node: Node, path: str) -> Federated | None:
    """None after noting a problem."""
    before = problems.count
    fields = Fields(problems, node, path)
    domain = fields.text("trust_domain", expected="a trust domain")
    if domain:
        try:
            check_trust_domain(domain)
        except SpiffeIdError:
            problems.add(fields.line_of("trust_domain"), fields.at("trust_domain"), _DOMAIN_EXPECTED, shown(domain))
    bundle = fields.text("bundle", "", expected="certificates in PEM form, or a SPIFFE bundle")
    file = fields.text("bundle_file", "", expected="a path from /", pattern=r"/[\x21-\x7e]{1,4094}")
    if fields.has("bundle") == fields.has("bundle_file"):
        found = "both" if fields.has("bundle") else "neither"
        problems.add(fields.line, fields.path, "either 'bundle' or 'bundle_file'", found)
    fields.close()
    return Federated(domain, bundle, file) if problems.count == before else None


def _check_domains(stated: Stated, lists: Iterable[Placed[Federated]]) -> Iterator[Problem]:
    for placed in lists:
        for index, one in placed.valid():
            if one.key == stated.trust_domain:
                yield placed.problem(index, "trust_domain", "another one than the mesh's own", shown(one.key))


FEDERATED_READER: Reader[Federated, FederatedEntry] = Reader(FederatedEntry, read_federated, check=_check_domains)
