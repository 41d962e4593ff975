"""Where the mesh state is, as the setting `mesh` says.

mesh: /etc/nodeseal/mesh            # a directory of files

mesh:                               # or Kubernetes
  kubernetes:
    trust_domain: cluster.local
    namespace: nodeseal-system      # where nodeseal's own objects are; this is the default
    server: https://10.0.0.1:6443   # for an agent that is in no pod, with the next two; a pod is given all three
    ca: /etc/nodeseal/kubernetes.pem
    token: /etc/nodeseal/kubernetes.token
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nodeseal.documents.document import Mapping, Scalar, shown
from nodeseal.documents.schema import Fields, read_text

DEFAULT_NAMESPACE = "nodeseal-system"

_PATH_EXPECTED = "a path"
_EXPECTED = "the path of a directory, or a mapping with 'kubernetes'"
_OUTSIDE = ("server", "ca", "token")


@dataclass(frozen=True, slots=True)
class Outside:
    """How an agent that is in no pod asks the API server. `server`: "https://host:port"; the others are files."""

    server: str
    ca: Path
    token: Path


@dataclass(frozen=True, slots=True)
class KubernetesMesh:
    """The mesh state is what Kubernetes' objects say. `outside`: None for what the agent's pod is given."""

    trust_domain: str
    namespace: str = DEFAULT_NAMESPACE
    outside: Outside | None = None


def read_mesh(fields: Fields, name: str, base: Path) -> Path | KubernetesMesh:
    """The required field `name`. Relative paths are relative to `base`. Problems are noted with the fields."""
    node = fields.node(name, _EXPECTED, required=True)
    if isinstance(node, Scalar):
        return base / read_text(fields.problems, node, fields.at(name), _EXPECTED)
    if node is None or not isinstance(node, Mapping):
        if node is not None:
            fields.wrong(node, name, _EXPECTED)
        return base
    outer = Fields(fields.problems, node, fields.at(name))
    inside = outer.node("kubernetes", "a mapping, with 'trust_domain' in it", required=True)
    outer.close()
    if inside is None:
        return base
    inner = Fields(fields.problems, inside, outer.at("kubernetes"))
    trust_domain = inner.trust_domain(expected="the mesh's trust domain, such as cluster.local")
    mesh = KubernetesMesh(trust_domain, inner.name("namespace", DEFAULT_NAMESPACE), _outside(inner, base))
    inner.close()
    return mesh


def _outside(fields: Fields, base: Path) -> Outside | None:
    if not any(map(fields.has, _OUTSIDE)):
        return None
    server = fields.text("server", expected="the API server's address, such as https://10.0.0.1:6443")
    try:
        parts = urlsplit(server)
        good = parts.scheme == "https" and bool(parts.hostname) and f"https://{parts.netloc}" == server.rstrip("/")
    except ValueError:
        good = False
    if server and (not good or "@" in server):
        expected = "an address such as https://10.0.0.1:6443"
        fields.problems.add(fields.line_of("server"), fields.at("server"), expected, shown(server))
    ca, token = (base / fields.text(one, expected=_PATH_EXPECTED) for one in ("ca", "token"))
    return Outside(server.rstrip("/"), ca, token)
