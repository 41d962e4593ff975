"""Where the API server is, and what the agent shows it: what every pod is given.

https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/ has the places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts a pod's token and the API server's CA."""

_TOKEN_MAX = 64 * 1024


class AccessError(Exception):
    """The API server cannot be asked from here. One line: what is missing, and what to do."""


@dataclass(frozen=True, slots=True)
class Access:
    """`server`: "https://host:port"; `ca`: what verifies it; `token`: a file, read for every request, because the
    kubelet replaces it long before it expires."""

    server: str
    ca: Path
    token: Path

    @classmethod
    def in_cluster(cls, environment: Mapping[str, str], directory: Path = SERVICE_ACCOUNT) -> Access:
        """Of the pod that this process is in. Raises AccessError."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
        if not host or not port:
            raise AccessError("this is no pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
        with contextlib.suppress(ValueError):
            host = f"[{IPv6Address(host)}]"
        access = cls(f"https://{host}:{port}", directory / "ca.crt", directory / "token")
        if not access.ca.is_file():
            raise AccessError(f"{access.ca} is missing: the pod needs a service account whose token is mounted")
        access.bearer()
        return access

    def bearer(self) -> str:
        """The present token. Raises AccessError."""
        try:
            with self.token.open("rb") as file:
                token = file.read(_TOKEN_MAX).decode("ascii").strip()
        except (OSError, ValueError) as error:
            raise AccessError(f"the token {self.token} cannot be read: {error}") from None
        if not token or not token.isprintable():
            raise AccessError(f"the token {self.token} is empty, or is none")
        return token
