"""The chart that this package carries, and the objects that it makes.

Helm renders the same files (deploy/chart/nodeseal). A test compares both, object by object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nodeseal.documents.plain import to_yaml
from nodeseal.manifests.template import TemplateError, Templates
from nodeseal.manifests.values import Values, ValuesError, check, over, read_values

RELEASE = "nodeseal"
_SERVICE = "nodeseal"
"""In place of "Helm", of what manages the objects."""

_ORDER = (
    "Namespace",
    "ResourceQuota",
    "CustomResourceDefinition",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ConfigMap",
    "Service",
    "PodDisruptionBudget",
    "Deployment",
    "DaemonSet",
)
"""Each kind needs those before it."""

_SEPARATOR = re.compile(r"^---\n", re.MULTILINE)
_IDENTITY = re.compile(
    r"^apiVersion: (?P<version>\S+)\nkind: (?P<kind>\S+)\nmetadata:\n  name: (?P<name>\S+)\n"
    r"(?:  namespace: (?P<namespace>\S+)\n)?",
    re.MULTILINE,
)


class ChartError(Exception):
    """The chart cannot be used; one line."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An object. `text`: YAML, as it is applied."""

    version: str
    kind: str
    name: str
    namespace: str | None
    text: str

    @property
    def identity(self) -> str:
        """YAML, as it is deleted."""
        lines = [f"apiVersion: {self.version}", f"kind: {self.kind}", "metadata:", f"  name: {self.name}"]
        if self.namespace is not None:
            lines.append(f"  namespace: {self.namespace}")
        return "\n".join(lines) + "\n"


class Chart:
    """The files in a directory."""

    def __init__(self, directory: Path | None = None) -> None:
        """None: those of this package."""
        self._directory = directory or Path(__file__).resolve().parents[1] / "chart"

    @cached_property
    def defaults(self) -> Values:
        """values.yaml. Raises ChartError."""
        return self._yaml("values.yaml")

    def values(self, changes: Iterable[Mapping[str, Any]]) -> Values:
        """The defaults with these changes, each over those before it. Raises ChartError; ValuesError when the schema
        does not allow them."""
        values = self.defaults
        for one in changes:
            values = over(values, one)
        check(values, self._read("values.schema.json"))
        return values

    def manifests(self, namespace: str, values: Values) -> list[Manifest]:
        """In the order in which they can be applied. Raises ChartError."""
        about = self._yaml("Chart.yaml")
        dot = {
            "Values": values,
            "Release": {"Name": RELEASE, "Namespace": namespace, "Service": _SERVICE},
            "Chart": {"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
        }
        try:
            names = sorted(path.name for path in (self._directory / "templates").iterdir())
            files = {name: self._read(f"templates/{name}").decode() for name in names if not name.endswith(".txt")}
            templates = Templates(files, to_yaml)
            found = [one for name in files if name.endswith(".yaml") for one in _documents(templates.render(name, dot))]
        except (OSError, TemplateError) as error:
            raise ChartError(f"the chart in {self._directory} cannot be used: {error}") from None
        return sorted(found, key=lambda one: _ORDER.index(one.kind))

    def _yaml(self, name: str) -> Values:
        try:
            return read_values(self._read(name), self._directory / name)
        except ValuesError as error:
            raise ChartError(str(error)) from None

    def _read(self, name: str) -> bytes:
        try:
            return (self._directory / name).read_bytes()
        except OSError as error:
            text = f"cannot read {self._directory / name}: {error.strerror}; install nodeseal again"
            raise ChartError(text) from None


def _documents(text: str) -> Iterator[Manifest]:
    for document in _SEPARATOR.split(text):
        if not document.strip():
            continue
        found = _IDENTITY.search(document)
        if found is None:
            raise TemplateError("an object has to begin with apiVersion, kind, metadata, name and namespace")
        yield Manifest(found["version"], found["kind"], found["name"], found["namespace"], document.strip() + "\n")
