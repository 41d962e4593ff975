"""Secrets and ConfigMaps: small files that Kubernetes keeps."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from nodeseal.kubernetes.objects import Key, KubernetesObject, Resource


class KeptMeta(Struct, frozen=True, rename="camel"):
    """What names it, and which version of it this is."""

    name: str
    namespace: str = ""
    resource_version: str = ""


class Secret(KubernetesObject, frozen=True):
    """Its files, in base64."""

    metadata: KeptMeta  # type: ignore[assignment] # it is never compared
    data: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"Secret({'/'.join(self.key)})"

    def files(self) -> dict[str, bytes]:
        """What is in it. Raises ValueError, which says nothing of the content."""
        try:
            return {name: b64decode(text, validate=True) for name, text in (self.data or {}).items()}
        except (binascii.Error, ValueError):
            raise ValueError("it is not in base64") from None


class ConfigMap(KubernetesObject, frozen=True):
    """Its texts."""

    data: dict[str, str] | None = None


SECRETS = Resource("", "v1", "secrets", Secret)
CONFIG_MAPS = Resource("", "v1", "configmaps", ConfigMap)


def secret(key: Key, files: Mapping[str, bytes], version: str = "") -> dict[str, Any]:
    """As it is written. `version`: the one that it takes the place of."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {**_named(key), **({"resourceVersion": version} if version else {})},
        "data": {name: b64encode(data).decode() for name, data in files.items()},
    }


def config_map(key: Key, data: Mapping[str, str]) -> dict[str, Any]:
    """The same of a ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _named(key), "data": dict(data)}


def _named(key: Key) -> dict[str, Any]:
    return {"namespace": key[0], "name": key[1], "labels": {"app.kubernetes.io/part-of": "nodeseal"}}
