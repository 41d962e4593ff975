"""Trust anchors, revocations and federated trust domains of a mesh in Kubernetes: the ConfigMap `nodeseal-mesh`.

Each of its keys that ends with .yaml, .yml or .json is a document such as those of a mesh directory
(docs/mesh-state.md), with the lists that no other object of Kubernetes has. All documents count together, or none: what
the last good ConfigMap said stays until all of it is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import field as json_field

from nodeseal.documents.document import Problem, Problems, read_document
from nodeseal.documents.reader import Placed, Stated
from nodeseal.documents.readers import READERS
from nodeseal.documents.schema import Fields
from nodeseal.kubernetes.objects import KubernetesObject, Resource
from nodeseal.mesh.federated import FEDERATED
from nodeseal.mesh.kinds import Kind
from nodeseal.mesh.revocation import REVOCATIONS
from nodeseal.mesh.trust_anchor import TRUST_ANCHORS

NAME = "nodeseal-mesh"
KINDS: tuple[Kind[Any, Any], ...] = (TRUST_ANCHORS, REVOCATIONS, FEDERATED)
_SUFFIXES = (".yaml", ".yml", ".json")


class ConfigMap(KubernetesObject, frozen=True):
    """Texts by their key."""

    data: dict[str, str] = json_field(default_factory=dict)


CONFIG_MAPS = Resource("", "v1", "configmaps", ConfigMap)


@dataclass(frozen=True, slots=True)
class Documents:
    """`objects`: by the name of their kind, all of it by the object's key; None: they cannot be used. `problems`: what
    is wrong, one line each."""

    objects: Mapping[str, Mapping[Any, Any]] | None = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def of(self, kind: Kind[Any, Any]) -> Mapping[Any, Any]:
        """The objects of one kind."""
        return (self.objects or {}).get(kind.name, {})


def read(found: ConfigMap | None, trust_domain: str) -> Documents:
    """What the ConfigMap says; one that is not there says that there is nothing."""
    if found is None:
        return Documents()
    where = f"ConfigMap {found.metadata.namespace}/{found.metadata.name}"
    lists: dict[str, list[Placed[Any]]] = {kind.name: [] for kind in KINDS}
    wrong: list[Problem] = []
    for name in sorted(found.data):
        if name.endswith(_SUFFIXES):
            problems = Problems(f"{where}, {name}")
            for kind, placed in _read(found.data[name], problems).items():
                lists[kind].append(placed)
            wrong += problems.found
    objects: dict[str, dict[Any, Any]] = {
        kind: {item.key: item for placed in of_kind for _, item in placed.valid()} for kind, of_kind in lists.items()
    }
    if not wrong:
        stated = Stated(trust_domain, objects)
        wrong += (problem for kind in KINDS for problem in READERS[kind.name].check(stated, lists[kind.name]))
    if wrong:
        return Documents(None, tuple(str(problem) for problem in wrong))
    return Documents(objects)


def _read(text: str, problems: Problems) -> dict[str, Placed[Any]]:
    lists = {kind.name: Placed[Any](problems.file, kind.name) for kind in KINDS}
    root = read_document(text.encode(), problems)
    if root is None:
        return lists
    fields = Fields(problems, root)
    for kind in KINDS:
        for index, node in enumerate(fields.items(kind.name, f"a list of {kind.name}", required=False)):
            lists[kind.name].add(node, READERS[kind.name].read(problems, node, f"{kind.name}[{index}]"))
    fields.close()
    return lists
