"""The configuration of `nodeseal ca serve`, in the same YAML and with the same kind of messages as an agent's.

    ca: /etc/nodeseal/ca             # required; made by `nodeseal ca init`; root.key is not needed
    mesh: /etc/nodeseal/mesh         # required; the mesh state's directory: it says who may have what
    state: /var/lib/nodeseal/ca      # the service's own keys, what was issued, tokens: back it up
    listen: [0.0.0.0:15018]          # addresses with their ports; "[::]:15018" for IPv6 too
    certificate_lifetime: 24h        # of workloads
    node_lifetime: 24h               # of nodes: one that is away for longer needs a new token
    retention: 90d                   # how long the store remembers a certificate or a token after its end
    audit: audit.jsonl               # the audit log; relative to `state`
    limits:
      node_rate: 20                  # requests a second of one node, in the long run
      node_burst: 1000               # at once, after it was quiet
      stranger_rate: 20              # attempts a second from one address that prove nothing
      stranger_burst: 200
      waiting: 20000                 # requests that wait to be signed
      connections: 4096              # at once
    # A SPIFFE bundle endpoint for other trust domains, at addresses of its own; absent: there is none.
    bundle_endpoint: {listen: [0.0.0.0:8443], refresh_hint: 5m}

In a cluster of Kubernetes `kubernetes` takes the place of `ca` and `mesh`:

    kubernetes:
      trust_domain: cluster.local
      namespace: nodeseal-system       # of all that follows
      secret: nodeseal-ca              # has the CA
      make: true                       # whether the service makes the CA where there is none
      root_secret: nodeseal-ca-root    # where it puts the root that it makes
      bundle: nodeseal-trust-bundle    # the ConfigMap by which agents know the service
      agents: nodeseal-agent           # the agents' service account
      audience: nodeseal-ca            # of their tokens
    audit: "-"                         # the default there: standard output

Relative paths are relative to the file's own directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

from nodeseal.authority.audit_file import STANDARD_OUTPUT
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.service import Lifetimes, Limits
from nodeseal.contracts.authority import AUDIENCE, DEFAULT_PORT, TRUST_BUNDLE
from nodeseal.documents.document import Node, shown
from nodeseal.documents.durations import read_duration
from nodeseal.documents.exclude import read_items
from nodeseal.documents.schema import Fields, Problems, open_document, read_text
from nodeseal.mesh.address import AddressError, ApplicationAddress

DEFAULT_CONFIG = Path("/etc/nodeseal/ca.yaml")
DEFAULT_STATE = "/var/lib/nodeseal/ca"

BUNDLE_ENDPOINT_PORT = 8443
"""The one that SPIRE's bundle endpoint has by default."""

NAMESPACE = "nodeseal-system"
"""Where nodeseal is in a cluster."""

_OBJECT = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_PATH = "a path"
_LISTEN = f"an address with a port, such as 0.0.0.0:{DEFAULT_PORT} or [::]:{DEFAULT_PORT}"
_MINUTE, _YEAR = timedelta(minutes=1), timedelta(days=365)
# To see renewals; a node asks for each of its workloads twice in that time.
_SHORTEST = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class BundleEndpointConfig:
    """A SPIFFE bundle endpoint."""

    listen: tuple[ApplicationAddress, ...]
    refresh_hint: timedelta


@dataclass(frozen=True, slots=True)
class DirectoryConfig:
    """The CA and the mesh state in directories."""

    ca: Path
    mesh: Path


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The cluster that the service is in."""

    trust_domain: str
    namespace: str
    secret: str
    make: bool
    root_secret: str
    bundle: str
    agents: str
    audience: str


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """See the module's text."""

    place: DirectoryConfig | ClusterConfig
    state: Path
    listen: tuple[ApplicationAddress, ...]
    lifetimes: Lifetimes
    retention: timedelta
    audit: Path
    limits: Limits
    bundle_endpoint: BundleEndpointConfig | None
    """None: there is none."""

    @property
    def directories(self) -> DirectoryConfig:
        """For what is done to a CA directory. Raises AuthorityError where there is none."""
        if isinstance(self.place, ClusterConfig):
            raise AuthorityError(
                "this certificate service is Kubernetes': its CA is in a Secret, nodes prove themselves by their pods' "
                "tokens, and its key is not kept; see docs/kubernetes-identity.md"
            )
        return self.place


def load(path: Path) -> ServiceConfig:
    """Raises AuthorityError with every problem, one a line."""
    problems = Problems(str(path))
    fields = open_document(path, problems)
    if fields is None:
        raise _error(problems)
    base = path.absolute().parent
    state = base / fields.text("state", DEFAULT_STATE, expected=_PATH)
    place = _place(fields, base)
    in_cluster = isinstance(place, ClusterConfig)
    audit = fields.text("audit", str(STANDARD_OUTPUT) if in_cluster else "audit.jsonl", expected=_PATH)
    config = ServiceConfig(
        place=place,
        state=state,
        listen=_listen(fields, DEFAULT_PORT),
        lifetimes=Lifetimes(
            read_duration(fields, "certificate_lifetime", "24h", _SHORTEST, _YEAR),
            read_duration(fields, "node_lifetime", "24h", _MINUTE, _YEAR),
        ),
        retention=read_duration(fields, "retention", "90d", timedelta(0), 20 * _YEAR),
        audit=state / audit if audit != str(STANDARD_OUTPUT) else STANDARD_OUTPUT,
        limits=_limits(fields),
        bundle_endpoint=_bundle_endpoint(fields),
    )
    fields.close()
    if problems.found:
        raise _error(problems)
    return config


def _place(fields: Fields, base: Path) -> DirectoryConfig | ClusterConfig:
    node = fields.node("kubernetes", "a mapping", required=False)
    if node is None:
        return DirectoryConfig(base / fields.text("ca", expected=_PATH), base / fields.text("mesh", expected=_PATH))
    inner = Fields(fields.problems, node, fields.at("kubernetes"))
    domain = inner.trust_domain("cluster.local", expected="a trust domain")

    def name(field: str, default: str) -> str:
        return inner.text(field, default, expected="the name of an object", pattern=_OBJECT)

    place = ClusterConfig(
        trust_domain=domain,
        namespace=name("namespace", NAMESPACE),
        secret=name("secret", "nodeseal-ca"),
        make=inner.truth("make", True),
        root_secret=name("root_secret", "nodeseal-ca-root"),
        bundle=name("bundle", TRUST_BUNDLE),
        agents=name("agents", "nodeseal-agent"),
        audience=inner.text("audience", AUDIENCE, expected="an audience of tokens"),
    )
    inner.close()
    if fields.has("bundle_endpoint"):
        fields.problems.add(
            fields.line_of("bundle_endpoint"), fields.at("bundle_endpoint"), "none beside `kubernetes`", "one"
        )
    return place


def _listen(fields: Fields, port: int) -> tuple[ApplicationAddress, ...]:
    expected = f"a list of addresses, each {_LISTEN}"
    before = fields.problems.count
    found = read_items(fields, "listen", expected, _read_listen)
    if found or fields.problems.count != before:
        return found
    if fields.has("listen"):
        fields.problems.add(fields.line_of("listen"), fields.at("listen"), expected, "none")
    return (ApplicationAddress(IPv4Address(0), port),)


def _bundle_endpoint(fields: Fields) -> BundleEndpointConfig | None:
    node = fields.node("bundle_endpoint", "a mapping", required=False)
    if node is None:
        return None
    inner = Fields(fields.problems, node, fields.at("bundle_endpoint"))
    hint = read_duration(inner, "refresh_hint", "5m", timedelta(seconds=5), timedelta(days=1))
    endpoint = BundleEndpointConfig(_listen(inner, BUNDLE_ENDPOINT_PORT), hint)
    inner.close()
    return endpoint


def _read_listen(problems: Problems, node: Node, field: str) -> ApplicationAddress | None:
    text = read_text(problems, node, field, _LISTEN)
    if not text:
        return None
    try:
        return ApplicationAddress.parse(text)
    except AddressError:
        problems.add(node.line, field, _LISTEN, shown(text))
        return None


def _limits(fields: Fields) -> Limits:
    usual = Limits()
    node = fields.node("limits", "a mapping", required=False)
    if node is None:
        return usual
    inner = Fields(fields.problems, node, fields.at("limits"))
    most = 1_000_000

    def number(name: str, default: float) -> int:
        return inner.integer(name, int(default), 1, most, f"a number from 1 to {most:,}")

    limits = Limits(
        rate=number("node_rate", usual.rate),
        burst=number("node_burst", usual.burst),
        strangers_rate=number("stranger_rate", usual.strangers_rate),
        strangers_burst=number("stranger_burst", usual.strangers_burst),
        waiting=number("waiting", usual.waiting),
        connections=number("connections", usual.connections),
    )
    inner.close()
    return limits


def _error(problems: Problems) -> AuthorityError:
    return AuthorityError("\n".join(str(problem) for problem in problems.found))
