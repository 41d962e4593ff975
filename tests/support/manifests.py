"""Objects of a cluster as values, and putting them into a real API server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from nodeseal.manifests.chart import Chart
from nodeseal.manifests.values import Values
from support.api_server import ApiServer

NAMESPACE = "nodeseal-system"
_FIELD_MANAGER = "nodeseal-test"
Object = dict[str, Any]


def rendered(*changes: Values, namespace: str = NAMESPACE) -> list[Object]:
    """What the chart makes with these values, in the order of `nodeseal install`."""
    chart = Chart()
    return [yaml.safe_load(one.text) for one in chart.manifests(namespace, chart.values(changes))]


class Cluster:
    """An API server that takes objects strictly: a field that it does not know is an error."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._found: dict[str, dict[str, str]] = {}

    def apply(self, objects: Iterable[Object], *, really: bool = True) -> None:
        """Each as kubectl's server-side apply does it. Raises AssertionError with what the server says."""
        for one in objects:
            query = f"fieldManager={_FIELD_MANAGER}&force=true&fieldValidation=Strict"
            if not really:
                query += "&dryRun=All"
            self._server.ask("PATCH", f"{self.path(one)}?{query}", one, "application/apply-patch+yaml")

    def path(self, one: Object) -> str:
        """Where it is."""
        metadata = one["metadata"]
        return f"{self._collection(one['apiVersion'], one['kind'], metadata.get('namespace'))}/{metadata['name']}"

    def _collection(self, version: str, kind: str, namespace: str | None) -> str:
        prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
        plural = self._plurals(prefix)[kind]
        return f"{prefix}/namespaces/{namespace}/{plural}" if namespace is not None else f"{prefix}/{plural}"

    def _plurals(self, prefix: str) -> dict[str, str]:
        if prefix not in self._found:
            resources = self._server.ask("GET", prefix)["resources"]
            self._found[prefix] = {one["kind"]: one["name"] for one in resources if "/" not in one["name"]}
        return self._found[prefix]
