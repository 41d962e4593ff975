"""The certificate service beside a real API server, as it is installed: its account, its rights, its configuration."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
import yaml

from nodeseal.contracts.authority import CERTIFICATES, Certificate, CertificateRequest
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity.in_cluster import ClusterIssuer
from nodeseal.identity.key import PrivateKey
from nodeseal.identity.service_client import ClusterClient, ServiceRefused
from nodeseal.kubernetes.access import Access
from nodeseal.local.issuers import ClusterCa
from nodeseal_lab.processes import child_environment
from support.api_server import ApiServer
from support.manifests import NAMESPACE, Cluster, rendered
from support.patience import PATIENCE, wait_for

T = TypeVar("T")

PORT = 15018
TRUST_DOMAIN = "cluster.local"
AGENT, SERVICE = "nodeseal-agent", "nodeseal-ca"

# The service finds its account where every pod has it; /run is its own.
_AS_POD = """
mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount &&
cp "$1/ca.crt" "$1/token" /run/secrets/kubernetes.io/serviceaccount && shift && exec "$@"
"""


@dataclass
class Running:
    """One process of it."""

    process: subprocess.Popen[str]
    log: Path
    audit: Path
    address: str
    """ "https://host:port" """

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text()


@dataclass
class ClusterService:
    """The installation, in an API server that has no kubelet: pods are there and bound, and none runs."""

    server: ApiServer
    directory: Path
    address: str = ""
    """Of the Service; on the loopback."""
    nodes: set[str] = field(default_factory=set)

    @classmethod
    def install(cls, server: ApiServer, directory: Path, **values: Any) -> ClusterService:
        """As `nodeseal install` does it; `values`: of the chart."""
        Cluster(server).apply(rendered({"namespace": {"create": True}, **values}))
        found = server.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/services/{SERVICE}")
        (address,) = found["spec"]["clusterIPs"]
        server.namespace.add_address("lo", f"{address}/32")
        return cls(server, directory, address)

    # ---- objects

    def node(self, name: str) -> None:
        """There is a node."""
        if name not in self.nodes:
            self.server.ask("POST", "/api/v1/nodes", {"metadata": {"name": name}})
            self.nodes.add(name)

    def account(self, namespace: str, name: str) -> None:
        """There is a service account, and its namespace."""
        for path, what in (("", namespace), (f"/{namespace}/serviceaccounts", name)):
            body = {"metadata": {"name": what}}
            with contextlib.suppress(AssertionError):  # it is there
                self.server.ask("POST", f"/api/v1/namespaces{path}", body)

    def pod(self, node: str, name: str, account: str = "default", namespace: str = "shop", **metadata: Any) -> str:
        """Its UID."""
        self.node(node)
        self.account(namespace, account)
        spec = {"nodeName": node, "containers": [{"name": "x", "image": "none"}], "serviceAccountName": account}
        if "annotations" in metadata:  # a mirror
            del spec["serviceAccountName"]
        body = {"metadata": {"name": name, **metadata}, "spec": spec}
        made = self.server.ask("POST", f"/api/v1/namespaces/{namespace}/pods", body)
        return str(made["metadata"]["uid"])

    def delete_pod(self, name: str, namespace: str = "shop") -> None:
        """At once."""
        self.server.ask("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": 0})

    def token(
        self, pod: tuple[str, str] | None = None, account: str = AGENT, namespace: str = NAMESPACE,
        audience: str | None = "nodeseal-ca",
    ) -> str:  # fmt: skip
        """As the kubelet asks for it. `pod`: (name, UID) that it is bound to."""
        spec: dict[str, Any] = {"audiences": [audience] if audience is not None else []}
        if pod is not None:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod[0], "uid": pod[1]}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.server.ask("POST", path, {"spec": spec})["status"]["token"])

    def agent(self, node: str, name: str = "") -> str:
        """The token of the agent's pod on a node, which is made."""
        name = name or f"agent-{node}"
        return self.token((name, self.pod(node, name, AGENT, NAMESPACE)))

    def secret(self, name: str) -> dict[str, bytes]:
        """The files of a Secret of ours."""
        data = self.server.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/{name}")["data"]
        return {key: base64.b64decode(value) for key, value in data.items()}

    # ---- processes

    @contextlib.contextmanager
    def running(self, address: str = "", **settings: Any) -> Iterator[Running]:
        """One process of the service, that listens there; the Service's own address if none is given."""
        with self.begun(address, **settings) as running:
            wait_for(lambda: self.probe(running.address, "ready") == 200, "the service is ready")
            yield running

    @contextlib.contextmanager
    def begun(self, address: str = "", **settings: Any) -> Iterator[Running]:
        """As `running`, from when it was started."""
        place = self.directory / f"service-{len(list(self.directory.iterdir()))}"
        (place / "account").mkdir(parents=True)
        access = self.server.access(self.token(None, SERVICE, audience=None))
        api = urlsplit(access.server)
        where = {"KUBERNETES_SERVICE_HOST": str(api.hostname), "KUBERNETES_SERVICE_PORT": str(api.port)}
        (place / "account" / "ca.crt").write_bytes(access.ca.read_bytes())
        (place / "account" / "token").write_bytes(access.token.read_bytes())
        text = self.server.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/nodeseal-ca-config")["data"][
            "ca.yaml"
        ]
        host = address or self.address
        whole = {**yaml.safe_load(text), "listen": [f"{host}:{PORT}"], "state": str(place / "state"), **settings}
        (place / "ca.yaml").write_text(yaml.safe_dump(whole))
        log, audit = place / "log", place / "audit"
        with log.open("w") as errors, audit.open("w") as lines:
            process = self.server.namespace.popen(
                "unshare", "--mount", "sh", "-c", _AS_POD, "sh", str(place / "account"),
                sys.executable, "-m", "nodeseal", "ca", "serve", "--config", str(place / "ca.yaml"),
                stdout=lines, stderr=errors,
                env=child_environment() | where,
            )  # fmt: skip
        try:
            yield Running(process, log, audit, f"https://{host}:{PORT}")
        finally:
            process.kill()
            process.wait(PATIENCE)

    def probe(self, address: str, which: str) -> int:
        """The status that a kubelet sees; 0: nobody answers."""

        def ask() -> int:
            done = subprocess.run(
                ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"{address}/v1/{which}"],
                capture_output=True, text=True, check=False, timeout=PATIENCE,
            )  # fmt: skip
            return int(done.stdout or 0)

        return self.server.inside(ask)

    # ---- agents

    def play(self, story: Callable[[], Awaitable[T]]) -> T:
        """Where the server and the service can be asked."""

        async def whole() -> T:
            async with asyncio.timeout(PATIENCE):
                return await story()

        return self.server.inside(lambda: asyncio.run(whole()))

    def issuer(self, node: str, token: str, *, keep: str | None = None) -> ClusterIssuer:
        """As an agent on this node has it, with this token."""
        place = self.directory / f"agent-{keep or len(list(self.directory.iterdir()))}"
        place.mkdir(exist_ok=True)
        (place / "token").write_text(token)
        account = self.server.access(self.token(None, audience=None))
        ca = ClusterCa(NAMESPACE, SERVICE, TRUST_DOMAIN, "nodeseal-trust-bundle", place / "token")
        access = Access(account.server, account.ca, account.token)
        return ClusterIssuer(ca, node, place, KeyKind.P256, access=access)

    def ask(self, node: str, token: str, identity: str, address: str = "") -> Certificate:
        """A certificate, as an agent asks for it. Raises ServiceRefused."""
        file = self.directory / "shown"
        file.write_text(token)
        bundle = self.server.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/nodeseal-trust-bundle")
        csr = PrivateKey.generate().request(identity).decode()

        async def story() -> Certificate:
            client = ClusterClient(TRUST_DOMAIN, file)
            await client.meet([address or f"https://{self.address}:{PORT}"], bundle["data"]["bundle.pem"])
            try:
                found = await client.ask(CERTIFICATES, CertificateRequest(identity=identity, csr=csr, node=node))
            finally:
                await client.close()
            assert found is not None
            return found

        return self.play(story)

    def refused(self, node: str, token: str, identity: str) -> str:
        """The word with which it is refused."""
        with pytest.raises(ServiceRefused) as caught:
            self.ask(node, token, identity)
        return caught.value.word


def identity(account: str, namespace: str = "shop") -> str:
    """Its SPIFFE id."""
    return f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}"
