"""Federated trust domains as they are written in the files of a mesh state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from nodeseal.documents.document import Node, Problem, Problems, shown
from nodeseal.documents.entries import FederatedEntry
from nodeseal.documents.reader import Placed, Reader, Stated
from nodeseal.documents.schema import Fields
from nodeseal.mesh.federated import FEDERATED, BundleEndpoint, Federated, Profile
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain, split

_DOMAIN_EXPECTED = "1 to 255 characters of a-z, 0-9, '.', '_' and '-'"
_FILE = r"/[\x21-\x7e]{1,4094}"
_URL_EXPECTED = "a URL that begins with https:// and has no user in it"
_ID_EXPECTED = "the SPIFFE id of the endpoint, such as spiffe://other.org/bundle-endpoint"
_WAYS_EXPECTED = "one of 'bundle', 'bundle_file', 'bundle_endpoint' and 'bundle_from_workload_api'"


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
    file = fields.text("bundle_file", "", expected="a path from /", pattern=_FILE)
    endpoint = _read_endpoint(fields, domain)
    from_workload_api = fields.truth("bundle_from_workload_api", False)
    _check_ways(fields, from_workload_api)
    fields.close()
    return Federated(domain, bundle, file, endpoint, from_workload_api) if problems.count == before else None


def _check_ways(fields: Fields, from_workload_api: bool) -> None:
    """A bundle or its file may stand beside an endpoint."""
    stated = [name for name in ("bundle", "bundle_file", "bundle_endpoint") if fields.has(name)]
    if from_workload_api:
        stated.append("bundle_from_workload_api")
    if len(stated) == 1 or (len(stated) == 2 and stated[1] == "bundle_endpoint"):
        return
    fields.problems.add(fields.line, fields.path, _WAYS_EXPECTED, " and ".join(stated) or "none of them")


def _read_endpoint(domain: Fields, trust_domain: str) -> BundleEndpoint | None:
    """None if there is none, or after noting a problem."""
    node = domain.node("bundle_endpoint", "a mapping with 'url' and 'profile'", required=False)
    if node is None:
        return None
    problems, before = domain.problems, domain.problems.count
    fields = Fields(problems, node, domain.at("bundle_endpoint"))
    url = fields.text("url", expected=_URL_EXPECTED)
    if url and not _is_url(url):
        problems.add(fields.line_of("url"), fields.at("url"), _URL_EXPECTED, shown(url))
    if not fields.has("profile"):
        # It cannot be told by the URL, and guessing would weaken it: SPIFFE Federation, section 7.2.
        fields.node("profile", "https_web or https_spiffe", required=True)
    profile = fields.choice("profile", Profile.WEB)
    spiffe = profile is Profile.SPIFFE
    own_id = fields.text("spiffe_id", None if spiffe else "", expected=_ID_EXPECTED)
    ca_file = fields.text("ca_file", "", expected="a path from /", pattern=_FILE)
    if own_id and (not spiffe or not _names_somebody(own_id)):
        expected = _ID_EXPECTED if spiffe else "nothing, as the profile is https_web"
        problems.add(fields.line_of("spiffe_id"), fields.at("spiffe_id"), expected, shown(own_id))
    if ca_file and spiffe:
        expected = "nothing, as the profile is https_spiffe"
        problems.add(fields.line_of("ca_file"), fields.at("ca_file"), expected, shown(ca_file))
    fields.close()
    if problems.count != before:
        return None
    endpoint = BundleEndpoint(url, profile, own_id, ca_file)
    if endpoint.trust_domain == trust_domain and not domain.has("bundle") and not domain.has("bundle_file"):
        expected = f"'bundle' or 'bundle_file' beside it: the first one of {trust_domain}, by which it is known"
        problems.add(fields.line, fields.path, expected, "neither")
    return endpoint


def _is_url(text: str) -> bool:
    """Sections 5.2.1.1 and 5.2.2.1."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    printable = all("\x21" <= one <= "\x7e" for one in text) and len(text) <= 2048
    return printable and parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc and port != 0


def _names_somebody(text: str) -> bool:
    try:
        return bool(split(text)[1])
    except SpiffeIdError:
        return False


def _check_domains(stated: Stated, lists: Iterable[Placed[Federated]]) -> Iterator[Problem]:
    for placed in lists:
        for index, one in placed.valid():
            if one.key == stated.trust_domain:
                yield placed.problem(index, "trust_domain", "another one than the mesh's own", shown(one.key))
            domain = one.endpoint.trust_domain if one.endpoint is not None else ""
            if domain and domain != stated.trust_domain and domain not in stated.keys[FEDERATED.name]:
                expected = "an id of a trust domain that the mesh is 'federated' with, by whose bundle it is known"
                yield placed.problem(index, "bundle_endpoint.spiffe_id", expected, shown(domain))


FEDERATED_READER: Reader[Federated, FederatedEntry] = Reader(FederatedEntry, read_federated, check=_check_domains)
