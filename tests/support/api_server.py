"""A real kube-apiserver with its etcd, on the loopback of a network namespace of their own.

`make test-kubernetes` builds both.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from nodeseal.kubernetes.access import Access
from nodeseal.kubernetes.api import Api
from support.namespaces import Namespace
from support.patience import PATIENCE, wait_for

T = TypeVar("T")

VERSION = "1.36.3"
PROGRAMS = Path(os.environ.get("NODESEAL_KUBERNETES") or Path.home() / ".cache" / "nodeseal" / f"kubernetes-{VERSION}")
HELM_VERSION = "4.3.2"
_OF_HELM = Path(os.environ.get("NODESEAL_HELM") or Path.home() / ".cache" / "nodeseal" / f"helm-{HELM_VERSION}")
HELM = _OF_HELM / "bin" / "helm"
ADMIN = "admin-of-the-test"
"""The token of who may do everything."""

_ETCD = 2379
_PORT = 6443


class ApiServer:
    """Runs from the making of the object until the end of the `with` block; its state outlives `stop` and `start`."""

    def __init__(self, directory: Path, namespace: Namespace, address: str = "127.0.0.1") -> None:
        """`address`: of the namespace, at which it is asked. Skips the test where the programs are not there."""
        self._etcd, self._program = (str(PROGRAMS / "bin" / name) for name in ("etcd", "kube-apiserver"))
        for program in (self._etcd, self._program):
            if not Path(program).exists():
                pytest.skip(f"{program} is not there: `make test-kubernetes` builds it, and runs this test")
        self.directory = directory
        self.url = f"https://{address}:{_PORT}"
        self.namespace = namespace
        self._address = address
        self._running: dict[str, subprocess.Popen[str]] = {}
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (directory / "accounts.key").write_bytes(pem)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (directory / "accounts.pub").write_bytes(public)
        self._tokens = directory / "tokens.csv"
        self._tokens.write_text(f'{ADMIN},admin,admin,"system:masters"\n')

    def __enter__(self) -> Self:
        try:
            self._start(
                "etcd",
                *(self._etcd, "--data-dir", str(self.directory / "etcd"), "--log-level", "error", "--unsafe-no-fsync"),
                # As kubeadm has it: bookmarks come of that.
                *("--watch-progress-notify-interval", "5s"),
                *("--listen-client-urls", f"http://127.0.0.1:{_ETCD}"),
                *(
                    "--advertise-client-urls",
                    f"http://127.0.0.1:{_ETCD}",
                    "--listen-peer-urls",
                    "http://127.0.0.1:2380",
                ),
            )
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self._end(name)

    def start(self, *more: str) -> None:
        """Returns when it answers. `more`: further arguments."""
        certificates = self.directory / "certificates"
        self._start(
            "kube-apiserver",
            *(self._program, "--etcd-servers", f"http://127.0.0.1:{_ETCD}", "--secure-port", str(_PORT)),
            *("--bind-address", self._address, "--advertise-address", self._address, "--cert-dir", str(certificates)),
            *("--service-account-issuer", "https://kubernetes.default.svc", "--authorization-mode", "Node,RBAC"),
            *("--service-account-key-file", str(self.directory / "accounts.pub")),
            *("--service-account-signing-key-file", str(self.directory / "accounts.key")),
            *("--token-auth-file", str(self._tokens), "--service-cluster-ip-range", "10.96.0.0/16"),
            "--allow-privileged",
            *more,
        )
        wait_for(self._ready, "the API server is ready")

    @property
    def pids(self) -> dict[str, int]:
        """Of "etcd" and "kube-apiserver", while they run."""
        return {name: process.pid for name, process in self._running.items()}

    @property
    def etcd(self) -> str:
        """Where etcd is asked, from inside the namespace."""
        return f"http://127.0.0.1:{_ETCD}"

    def stop(self) -> None:
        """It is away; etcd has its state."""
        self._end("kube-apiserver")

    def access(self, token: str = ADMIN) -> Access:
        """How to ask it, from inside the namespace."""
        file = self.directory / f"token-{hashlib.sha256(token.encode()).hexdigest()[:16]}"
        file.write_text(f"{token}\n")
        return Access(self.url, self.directory / "certificates" / "apiserver.crt", file)

    def inside(self, action: Callable[[], T]) -> T:
        """Calls it where the server can be asked, in another thread."""
        return self.namespace.run(action)

    def play(self, story: Callable[[Api], Awaitable[None]], token: str = ADMIN) -> None:
        """Calls it where the server can be asked, with what asks it."""

        async def whole() -> None:
            api = Api(self.access(token), "nodeseal-test")
            try:
                await story(api)
            finally:
                await api.close()

        self.inside(lambda: asyncio.run(whole()))

    def add_user(self, name: str, token: str) -> None:
        """One who has no rights; restarts the server, which reads its tokens once."""
        with self._tokens.open("a") as file:
            file.write(f"{token},{name},{name}\n")
        self.stop()
        self.start()

    def compact(self) -> None:
        """etcd forgets all versions but the present one."""
        revision = self._ask_etcd("/v3/kv/range", {"key": "Lw=="})["header"]["revision"]
        self._ask_etcd("/v3/kv/compaction", {"revision": revision})

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> Any:
        """As the administrator; the answer."""
        return self.namespace.run(lambda: self._ask(method, path, body, content, accept))

    def counted(self, metric: str, **labels: str) -> float:
        """The sum of one of its own metrics, of the rows that have these labels."""
        rows = self.namespace.run(lambda: self._answer("GET", "/metrics", None, "", "text/plain")).splitlines()
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        found = [row for row in rows if row.startswith(f"{metric}{{") and all(one in row for one in wanted)]
        return sum(float(row.rpartition(" ")[2]) for row in found)

    def _ask(self, method: str, path: str, body: Any, content: str, accept: str) -> Any:
        return json.loads(self._answer(method, path, body, content, accept))

    def _answer(self, method: str, path: str, body: Any, content: str, accept: str) -> str:
        context = ssl.create_default_context(cafile=self.directory / "certificates" / "apiserver.crt")
        connection = http.client.HTTPSConnection(self._address, _PORT, context=context, timeout=30)
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": content, "Accept": accept}
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        assert answer.status < 300, f"{method} {path}: {text}"
        return text

    def _ask_etcd(self, path: str, body: Any) -> Any:
        """Over its gateway for JSON (https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/)."""

        def ask() -> Any:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", _ETCD, timeout=30)) as connection:
                connection.request("POST", path, json.dumps(body))
                return json.load(connection.getresponse())

        return self.namespace.run(ask)

    def _ready(self) -> bool:
        server = self._running["kube-apiserver"]
        assert server.poll() is None, (self.directory / "kube-apiserver.log").read_text()[-3000:]
        try:
            self.ask("GET", "/api/v1/namespaces/default")
        except (OSError, AssertionError, ssl.SSLError):
            return False
        return True

    def _start(self, name: str, *words: str) -> None:
        with (self.directory / f"{name}.log").open("a") as log:
            self._running[name] = self.namespace.popen(*words, stdout=log, stderr=log)

    def _end(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()  # told to go, it waits a minute for its watches
        process.wait(PATIENCE)
