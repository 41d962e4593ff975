"""Which issuers a node has, as its configuration says: what `ca` names, and for some namespaces another one.

    ca: /etc/nodeseal/ca                  # a CA directory: this node signs by itself

    ca:                                   # or the certificate service, `nodeseal ca serve`
      service: [https://10.0.0.1:8443]    # its addresses, tried in turn
      trust_domain: example.org
      pin: 3f1c...                        # SHA-256 of the service's key, or a list: of its next one too; or
      anchor: /etc/nodeseal/service.pem   # what the service's certificate is verified by
      token_file: /etc/nodeseal/token     # with which this node joins
      keep: /var/lib/nodeseal             # the node's own key and certificate; the default is the run directory

    ca:                                   # or the certificate service of the cluster that this node's agent is a pod of
      kubernetes: nodeseal-system/nodeseal-ca   # its Service
      trust_domain: cluster.local         # the default
      bundle: nodeseal-trust-bundle       # the ConfigMap beside it, by which the service is known; the default
      token_file: /var/run/secrets/nodeseal/token   # the pod's token for the service; the default

    ca:                                   # or a directory that another tool fills
      delivered: /run/certificates
      trust_domain: example.org
      path: "{namespace}/{service_account}"
      certificate: tls.crt                # in there: the leaf, then the intermediates
      key: tls.key
      bundle: ca.crt

    ca:                                   # or a SPIFFE Workload API
      workload_api: /run/spire/agent.sock
      trust_domain: example.org

    issuers:                              # for workloads of these namespaces, instead of `ca`
    - namespaces: [payments]
      ca: /etc/nodeseal/ca-of-payments

All of them issue in one trust domain: the mesh state's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nodeseal.contracts.authority import TRUST_BUNDLE
from nodeseal.documents.document import List, Mapping, Node, Scalar, shown
from nodeseal.documents.schema import Fields, read_name, read_text

DEFAULT_PATTERN = "{namespace}/{service_account}"

TOKEN_FILE = Path("/var/run/secrets/nodeseal/token")
"""Where the agent's pod has the token for the certificate service."""

_PATH_EXPECTED = "a path"
_OBJECT = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_SERVICE = rf"{_OBJECT}/{_OBJECT}"
_CA_EXPECTED = "the path of a CA directory, or a mapping with one of service, kubernetes, delivered and workload_api"
_PIN = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_FILE = r"[A-Za-z0-9._-]{1,64}"
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_TRUST_DOMAIN = "the mesh state's trust domain"
_SERVICES_MAX = 16
_PINS_MAX = 8
_PIN_EXPECTED = "the SHA-256 that `nodeseal ca token create` prints: 64 hexadecimal digits, or a list of such"


@dataclass(frozen=True, slots=True)
class OwnCa:
    """A CA directory, by which the node signs itself."""

    directory: Path


@dataclass(frozen=True, slots=True)
class ServiceCa:
    """The certificate service."""

    services: tuple[str, ...]
    """ "https://host:port" each; tried in turn."""
    trust_domain: str
    pins: tuple[str, ...]
    """SHA-256 over the service's public key, in hexadecimal: the present one's, and those that it may have next. Either
    these or `anchor`."""
    anchor: Path | None
    token_file: Path | None
    keep: Path | None
    """Where the node's key and certificate are; None: in the run directory."""


@dataclass(frozen=True, slots=True)
class ClusterCa:
    """The certificate service in the cluster that the agent is a pod of."""

    namespace: str
    service: str
    """The name of its Service."""
    trust_domain: str
    bundle: str
    """The name of the ConfigMap that has its trust anchors."""
    token_file: Path
    """What the kubelet projects for it."""


@dataclass(frozen=True, slots=True)
class DeliveredCa:
    """A directory that another tool fills."""

    directory: Path
    trust_domain: str
    pattern: str
    """The path in it of a workload's files, with {namespace}, {service_account} in it."""
    certificate: str
    key: str
    bundle: str


@dataclass(frozen=True, slots=True)
class WorkloadApiCa:
    """A SPIFFE Workload API's socket."""

    socket: Path
    trust_domain: str


Ca = OwnCa | ServiceCa | ClusterCa | DeliveredCa | WorkloadApiCa


@dataclass(frozen=True, slots=True)
class NamespaceCa:
    """Workloads of these namespaces have another issuer."""

    namespaces: tuple[str, ...]
    ca: Ca


def read_ca(fields: Fields, name: str, base: Path) -> Ca:
    """The required field `name`. Relative paths are relative to `base`. Problems are noted with the fields."""
    node = fields.node(name, _CA_EXPECTED, required=True)
    if node is None:
        return OwnCa(base)
    if isinstance(node, Scalar):
        return OwnCa(base / read_text(fields.problems, node, fields.at(name), _CA_EXPECTED))
    if not isinstance(node, Mapping):
        fields.wrong(node, name, _CA_EXPECTED)
        return OwnCa(base)
    inner = Fields(fields.problems, node, fields.at(name))
    kinds = [kind for kind in _READERS if inner.has(kind)]
    if len(kinds) != 1:
        found = " and ".join(kinds) if kinds else "none of them"
        fields.problems.add(node.line, fields.at(name), f"one of {', '.join(_READERS)}", found)
        return OwnCa(base)
    ca = _READERS[kinds[0]](inner, base)
    inner.close()
    return ca


def read_issuers(fields: Fields, base: Path) -> tuple[NamespaceCa, ...]:
    """The field `issuers`. Problems are noted with the fields."""
    found: list[NamespaceCa] = []
    expected = "a list of issuers for namespaces"
    taken: dict[str, int] = {}
    for index, node in enumerate(fields.items("issuers", expected, required=False)):
        inner = Fields(fields.problems, node, f"issuers[{index}]")
        names = _namespaces(inner)
        for name in names:
            if name in taken:
                what = f"{name}, which issuers[{taken[name]}] has"
                fields.problems.add(node.line, inner.at("namespaces"), "namespaces that no other issuer has", what)
            taken[name] = index
        found.append(NamespaceCa(names, read_ca(inner, "ca", base)))
        inner.close()
    return tuple(found)


def _namespaces(fields: Fields) -> tuple[str, ...]:
    nodes = fields.items("namespaces", "a list of namespaces, at least one", required=True)
    names = tuple(
        read_name(fields.problems, node, f"{fields.at('namespaces')}[{index}]") for index, node in enumerate(nodes)
    )
    if fields.has("namespaces") and not names and not fields.problems.found:
        fields.problems.add(fields.line_of("namespaces"), fields.at("namespaces"), "at least one namespace", "none")
    return names


def _service(fields: Fields, base: Path) -> ServiceCa:
    expected = f"1 to {_SERVICES_MAX} addresses such as https://10.0.0.1:8443"
    node = fields.node("service", expected, required=True)
    items = node.items if isinstance(node, List) else [node] if isinstance(node, Scalar) else []
    if node is not None and not 1 <= len(items) <= _SERVICES_MAX:
        fields.wrong(node, "service", expected)
    pins = _pins(fields)
    anchor = _path(fields, "anchor", base)
    if fields.has("pin") == fields.has("anchor"):
        found = "both" if fields.has("pin") else "neither"
        fields.problems.add(fields.line, fields.path, "either 'pin' or 'anchor', by which the service is known", found)
    return ServiceCa(
        services=tuple(_address(fields, one, index) for index, one in enumerate(items)),
        trust_domain=fields.trust_domain(expected=_TRUST_DOMAIN),
        pins=pins,
        anchor=anchor,
        token_file=_path(fields, "token_file", base),
        keep=_path(fields, "keep", base),
    )


def _kubernetes(fields: Fields, base: Path) -> ClusterCa:
    expected = "a Service, as namespace/name"
    text = fields.text("kubernetes", expected=expected, pattern=_SERVICE)
    namespace, _, service = text.partition("/")
    return ClusterCa(
        namespace=namespace,
        service=service,
        trust_domain=fields.trust_domain("cluster.local", expected=_TRUST_DOMAIN),
        bundle=fields.text("bundle", TRUST_BUNDLE, expected="a ConfigMap's name", pattern=_OBJECT),
        token_file=base / fields.text("token_file", str(TOKEN_FILE), expected=_PATH_EXPECTED),
    )


def _pins(fields: Fields) -> tuple[str, ...]:
    """One, or a list of some."""
    node = fields.node("pin", _PIN_EXPECTED, required=False)
    if node is None:
        return ()
    items = node.items if isinstance(node, List) else [node] if isinstance(node, Scalar) else []
    if not 1 <= len(items) <= _PINS_MAX:
        fields.wrong(node, "pin", f"1 to {_PINS_MAX} of the service's keys, each by 64 hexadecimal digits")
    found = []
    for index, one in enumerate(items):
        where = fields.at("pin") if isinstance(node, Scalar) else f"{fields.at('pin')}[{index}]"
        text = read_text(fields.problems, one, where, _PIN_EXPECTED)
        if (match := _PIN.fullmatch(text)) is not None:
            found.append(match[1])
        elif text:
            fields.problems.add(one.line, where, "64 hexadecimal digits", shown(text))
    return tuple(found)


def _address(fields: Fields, node: Node, index: int) -> str:
    where = f"{fields.at('service')}[{index}]"
    expected = "an address such as https://10.0.0.1:8443"
    text = read_text(fields.problems, node, where, expected)
    try:
        parts = urlsplit(text)
        good = (
            parts.scheme == "https" and parts.hostname is not None and parts.port is not None and "@" not in text
        ) and f"https://{parts.netloc}" == text.rstrip("/")
    except ValueError:
        good = False
    if text and not good:
        fields.problems.add(node.line, where, expected, shown(text))
    return text.rstrip("/")


def _delivered(fields: Fields, base: Path) -> DeliveredCa:
    pattern = fields.text("path", DEFAULT_PATTERN, expected=f"a path such as {DEFAULT_PATTERN}")
    unknown = set(_PLACEHOLDER.findall(pattern)) - {"namespace", "service_account"}
    rest = _PLACEHOLDER.sub("x", pattern)
    if unknown or "{" in rest or "}" in rest or rest.startswith("/") or ".." in rest.split("/"):
        expected = "a relative path, with {namespace} and {service_account} in it"
        fields.problems.add(fields.line_of("path"), fields.at("path"), expected, shown(pattern))
    return DeliveredCa(
        directory=base / fields.text("delivered", expected=_PATH_EXPECTED),
        trust_domain=fields.trust_domain(expected=_TRUST_DOMAIN),
        pattern=pattern,
        certificate=fields.text("certificate", "tls.crt", expected="a file's name", pattern=_FILE),
        key=fields.text("key", "tls.key", expected="a file's name", pattern=_FILE),
        bundle=fields.text("bundle", "ca.crt", expected="a file's name", pattern=_FILE),
    )


def _workload_api(fields: Fields, base: Path) -> WorkloadApiCa:
    text = fields.text("workload_api", expected="the path of a Unix socket")
    return WorkloadApiCa(
        base / text.removeprefix("unix://").removeprefix("unix:"), fields.trust_domain(expected=_TRUST_DOMAIN)
    )


def _path(fields: Fields, name: str, base: Path) -> Path | None:
    text = fields.text(name, "", expected=_PATH_EXPECTED)
    return base / text if text else None


_READERS: dict[str, Callable[[Fields, Path], Ca]] = {
    "service": _service,
    "kubernetes": _kubernetes,
    "delivered": _delivered,
    "workload_api": _workload_api,
}
