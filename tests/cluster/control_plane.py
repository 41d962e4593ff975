"""etcd, the API server, the controller manager and the scheduler, in a network namespace of their own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cluster import settings
from cluster.credentials import Credentials
from cluster.errors import ClusterError, CommandError
from cluster.plan import API_ADDRESS, API_PORT, DOMAIN, SERVICES, ClusterPlan
from cluster.programs import KUBERNETES, run
from nodeseal_lab.processes import ProcessRecord, ProcessTable

_PATIENCE = 60.0
_ETCD = "http://127.0.0.1:2379"
SERVER = f"https://{API_ADDRESS}:{API_PORT}"


class ControlPlane:
    """That of a cluster which is there; by the same plan again in another process."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self.directory = plan.directory / "control-plane"
        self._processes = ProcessTable(self.directory / "processes")

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.directory / "credentials" / "admin.kubeconfig"

    def make(self) -> Credentials:
        """Its certificates and kubeconfigs."""
        self.directory.mkdir(mode=0o700)
        credentials = Credentials(self.directory / "credentials", SERVER)
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"]
        credentials.issue("apiserver", "kube-apiserver", addresses=[API_ADDRESS, SERVICES[1]], names=names)
        credentials.issue("kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"])
        credentials.issue("front-proxy", "front-proxy-client")
        credentials.account_keys()
        (credentials.directory / "admission.json").write_text(settings.admission())
        credentials.kubeconfig("admin", "admin", ["system:masters"])
        credentials.kubeconfig("controller-manager", "system:kube-controller-manager")
        credentials.kubeconfig("scheduler", "system:kube-scheduler")
        return credentials

    def start(self) -> None:
        """Returns when the API server is ready. Raises ClusterError, LabError."""
        self.start_program("etcd")
        self.start_program("kube-apiserver")
        deadline = time.monotonic() + _PATIENCE
        while not self._ready():
            if self._record("kube-apiserver") is None or time.monotonic() > deadline:
                log = self.directory / "kube-apiserver.log"
                raise ClusterError(f"the API server is not ready ({log}): {log.read_text().strip()[-300:]}")
            time.sleep(0.05)
        self.start_program("kube-controller-manager")
        self.start_program("kube-scheduler")

    def start_program(self, name: str) -> None:
        """One of the four. Raises LabError."""
        argv = [str(KUBERNETES / name), *self._arguments(name)]
        self._processes.start(name, argv, netns=self._plan.api_netns, output=self.directory / f"{name}.log")

    def kill_program(self, name: str) -> None:
        """One of the four, at once. Raises ClusterError when it does not run."""
        record = self._record(name)
        if record is None or record.pid is None:
            raise ClusterError(f"{name} does not run")
        os.kill(record.pid, signal.SIGKILL)
        self._processes.end([record])

    def stop(self) -> None:
        """All of it, at once: nothing of it is to be kept."""
        for record in self._processes.records():
            if record.alive and record.pid is not None:
                os.kill(record.pid, signal.SIGKILL)
        self._processes.end(self._processes.records())

    def _record(self, name: str) -> ProcessRecord | None:
        return next((one for one in self._processes.records() if one.role == name and one.alive), None)

    def _ready(self) -> bool:
        kubectl: list[str | Path] = [KUBERNETES / "kubectl", "--kubeconfig", self.kubeconfig, "get", "--raw", "/readyz"]
        try:
            return run(["nsenter", f"--net=/run/netns/{self._plan.api_netns}", *kubectl]) == "ok"
        except CommandError:
            return False

    def _arguments(self, name: str) -> list[str]:
        own = self.directory / "credentials"
        services = ",".join(map(str, self._plan.service_ranges))
        if name == "etcd":
            return [
                f"--data-dir={self.directory / 'etcd'}",
                "--log-level=error",
                "--unsafe-no-fsync",
                "--watch-progress-notify-interval=5s",
                f"--listen-client-urls={_ETCD}",
                f"--advertise-client-urls={_ETCD}",
                "--listen-peer-urls=http://127.0.0.1:2380",
            ]
        if name == "kube-apiserver":
            return [
                f"--etcd-servers={_ETCD}",
                f"--secure-port={API_PORT}",
                f"--advertise-address={API_ADDRESS}",
                f"--tls-cert-file={own / 'apiserver.crt'}",
                f"--tls-private-key-file={own / 'apiserver.key'}",
                f"--client-ca-file={own / 'ca.crt'}",
                f"--kubelet-client-certificate={own / 'kubelet-client.crt'}",
                f"--kubelet-client-key={own / 'kubelet-client.key'}",
                "--kubelet-preferred-address-types=InternalIP",
                f"--proxy-client-cert-file={own / 'front-proxy.crt'}",
                f"--proxy-client-key-file={own / 'front-proxy.key'}",
                f"--requestheader-client-ca-file={own / 'ca.crt'}",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                # There is no kube-proxy where the API server runs: webhooks are asked at their pods.
                "--enable-aggregator-routing",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                f"--admission-control-config-file={own / 'admission.json'}",
                f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
                f"--service-account-key-file={own / 'accounts.pub'}",
                f"--service-account-signing-key-file={own / 'accounts.key'}",
                f"--service-cluster-ip-range={services}",
                "--allow-privileged",
            ]
        if name == "kube-controller-manager":
            return [
                *_client(own / "controller-manager.kubeconfig"),
                f"--cluster-cidr={','.join(map(str, self._plan.pod_ranges))}",
                f"--service-cluster-ip-range={services}",
                f"--root-ca-file={own / 'ca.crt'}",
                f"--cluster-signing-cert-file={own / 'ca.crt'}",
                f"--cluster-signing-key-file={own / 'ca.key'}",
                f"--service-account-private-key-file={own / 'accounts.key'}",
                "--use-service-account-credentials",
            ]
        return _client(own / "scheduler.kubeconfig")


def _client(kubeconfig: Path) -> list[str]:
    """There is one of each: it needs not be elected."""
    return [
        *(f"--{what}kubeconfig={kubeconfig}" for what in ("", "authentication-", "authorization-")),
        "--leader-elect=false",
    ]
