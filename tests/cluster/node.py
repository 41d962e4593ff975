"""A node: its root file system on disk, and the namespaces that it runs in."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster import cgroups, network, settings
from cluster.credentials import Credentials
from cluster.errors import ClusterError, CommandError
from cluster.plan import ClusterPlan, NodePlan
from cluster.programs import CNI_PLUGINS, KUBERNETES, run
from nodeseal_lab.processes import ProcessRecord, ProcessTable

PROGRAMS = "/opt/kubernetes/bin"
SERVICES = ("containerd", "kubelet", "kube-proxy")
_PATH = f"PATH={PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATIENCE = 60.0

# What programs of Debian look for; all else is in /usr, which is the host's.
_OF_ETC = (
    "alternatives",
    "ca-certificates.conf",
    "debian_version",
    "group",
    "iproute2",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "nsswitch.conf",
    "os-release",
    "passwd",
    "protocols",
    "services",
    "ssl",
)
_DIRECTORIES = (
    settings.CNI_CONFIG,
    settings.CNI_PROGRAMS,
    settings.KUBERNETES_FILES,
    "etc/containerd",
    "home",
    "mnt",
    "root",
    "tmp",
    "var/lib/cni",
    "var/lib/containerd",
    "var/lib/kubelet",
    "var/log/containers",
    "var/log/pods",
    "var/tmp",
)
# A kubelet writes these; the values are its own (pkg/kubelet/cm/container_manager_linux.go).
_SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}


class Node:
    """One node of a cluster that is there; by the same name again in another process."""

    def __init__(self, cluster: ClusterPlan, plan: NodePlan) -> None:
        self._cluster = cluster
        self.plan = plan
        self._processes = ProcessTable(plan.directory / "processes")

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def record(self) -> ProcessRecord | None:
        """Its process outside of its PID namespace, while it runs."""
        return next((one for one in self._processes.records() if one.alive), None)

    @property
    def pid(self) -> int:
        """Its first process, as the host counts. Raises ClusterError when the node is off."""
        record = self.record
        if record is not None and record.pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(record.pid).children():
                    return child.pid
        raise ClusterError(f"{self.name} is off")

    def make(self, credentials: Credentials) -> None:
        """Its files. `credentials`: of the cluster. Raises ClusterError, OSError."""
        root = self.plan.root
        for name in _DIRECTORIES:
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("tmp", "var/tmp"):
            (root / name).chmod(0o1777)
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(Path("/", name).readlink())
        (root / "var/run").symlink_to("/run")
        for name in _OF_ETC:
            source = Path("/etc", name)
            if source.is_dir():
                shutil.copytree(source, root / "etc" / name, symlinks=True)
            elif source.exists():
                shutil.copy2(source, root / "etc" / name, follow_symlinks=False)
        (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (root / "etc/hostname").write_text(f"{self.name}\n")
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.plan.address} {self.name}\n")
        (root / "etc/resolv.conf").write_text("# There is no DNS.\n")
        for plugin in CNI_PLUGINS.iterdir():
            shutil.copy2(plugin, root / settings.CNI_PROGRAMS / plugin.name)
        (root / settings.CNI_CONFIG / settings.CNI_FILE).write_text(settings.cni(self.plan))
        (root / "etc/containerd/config.toml").write_text(settings.containerd())
        own = root / settings.KUBERNETES_FILES
        (own / "kubelet.yaml").write_text(settings.kubelet())
        (own / "kube-proxy.yaml").write_text(settings.kube_proxy(self._cluster))
        shutil.copy2(credentials.ca, own / "ca.crt")
        user = f"system:node:{self.name}"
        shutil.copy2(credentials.kubeconfig(self.name, user, ["system:nodes"]), own / "kubelet.kubeconfig")
        shutil.copy2(credentials.kubeconfig(f"{self.name}-proxy", "system:kube-proxy"), own / "kube-proxy.kubeconfig")

    def boot(self) -> None:
        """Turns it on; containerd answers when this returns. Raises ClusterError, LabError."""
        network.make_node(self._cluster, self.plan)
        entrances = cgroups.make(self.plan.cgroup)
        binds = [["/usr", "/usr"], [str(KUBERNETES), PROGRAMS], *([path, path] for path in self._cluster.binds)]
        own = {
            "root": str(self.plan.root),
            "orders": str(self.plan.orders),
            "binds": binds,
            "cgroups": [[str(one.path), one.kind, one.options] for one in cgroups.of_host()],
            "sysctls": _SYSCTLS,
        }
        file = self.plan.directory / "settings.json"
        file.write_text(json.dumps(own))
        program = str(Path(__file__).with_name("node_process.py"))
        inside = ["unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child"]
        argv = [*inside, "env", "-i", _PATH, "HOME=/root", "/usr/bin/python3", "-I", program, str(file)]
        log = self.plan.directory / "node.log"
        command = f"{_enter(entrances)}; exec {shlex.join(argv)}"
        self._processes.start(f"node {self.name}", ["/bin/sh", "-ec", command], netns=self.plan.netns, output=log)
        self._wait(self.plan.orders.exists, "takes orders", log)
        self.start("containerd")
        self._wait(self._containerd_answers, "has a containerd that answers", self.log("containerd"))

    def kill(self) -> None:
        """Turns it off as a power cut does. Raises ClusterError, LabError."""
        for record in self._processes.records():
            if record.alive and record.pid is not None:
                os.kill(record.pid, signal.SIGKILL)
        self._processes.end(self._processes.records())
        self.plan.orders.unlink(missing_ok=True)
        cgroups.remove(self.plan.cgroup)
        network.remove_node(self._cluster, self.plan)

    def start(self, service: str) -> None:
        """Starts containerd, kubelet or kube-proxy. Raises ClusterError."""
        own = f"/{settings.KUBERNETES_FILES}"
        argv = {
            "containerd": ["containerd"],
            "kubelet": [f"{PROGRAMS}/kubelet", *settings.kubelet_arguments(self.plan)],
            "kube-proxy": [
                f"{PROGRAMS}/kube-proxy",
                f"--config={own}/kube-proxy.yaml",
                f"--hostname-override={self.name}",
            ],
        }[service]
        self._order({"start": service, "argv": argv})

    def stop(self, service: str, number: int = signal.SIGTERM) -> None:
        """Ends a service; what it has started (shims, containers) lives on. Raises ClusterError."""
        self._order({"signal": service, "number": int(number)})
        self._wait(
            lambda: self._order({"ask": service})["status"] is not None, f"has ended {service}", self.log(service)
        )

    def restart(self, service: str, number: int = signal.SIGTERM) -> None:
        """stop() and start(). Raises ClusterError."""
        self.stop(service, number)
        self.start(service)

    def revive(self) -> None:
        """Starts what has ended by itself, as systemd does: a kubelet ends when its containerd is not ready yet. Raises
        ClusterError."""
        for service in SERVICES:
            if self._order({"ask": service})["status"] is not None:
                self.start(service)

    def log(self, service: str) -> Path:
        """What a service has written."""
        return self.plan.root / "var/log" / f"{service}.log"

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` on the node, in all of its namespaces and cgroups. Raises ClusterError."""
        entrances = [one.path / self.plan.cgroup.strip("/") / "cgroup.procs" for one in cgroups.of_host()]
        namespaces = ["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net"]
        inside = ["nsenter", "--target", str(self.pid), *namespaces, "--", "env", _PATH, *argv]
        return ["/bin/sh", "-ec", f'{_enter(entrances)}; exec "$@"', "sh", *inside]

    def run(self, *argv: str, text: str | None = None, seconds: float = 120.0) -> str:
        """A command on the node that has to work; what it prints. Raises ClusterError."""
        return run(self.enter(argv), text=text, seconds=seconds)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """A program on the node, for whoever ends it. Raises ClusterError."""
        return subprocess.Popen(self.enter(argv), text=True, **options)

    def import_image(self, archive: Path) -> None:
        """Into containerd, from a docker or an OCI archive. Raises ClusterError."""
        with archive.open("rb") as file:
            done = subprocess.run(
                self.enter(["ctr", "--namespace", "k8s.io", "images", "import", "-"]),
                stdin=file,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        if done.returncode != 0:
            raise CommandError(["ctr", "images", "import", str(archive)], done.returncode, done.stderr)

    def _containerd_answers(self) -> bool:
        try:
            self.run("ctr", "--namespace", "k8s.io", "containers", "list", "--quiet")
        except CommandError:
            return False
        return True

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        """The answer. Raises ClusterError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(str(self.plan.orders))
                connection.sendall(json.dumps(order).encode() + b"\n")
                answer: dict[str, Any] = json.loads(connection.makefile().readline())
            except (OSError, ValueError) as error:
                raise ClusterError(f"{self.name} takes no orders: {error}; is it off?") from error
        if "error" in answer:
            raise ClusterError(f"{self.name} could not do {order}: {answer['error']}")
        return answer

    def _wait(self, condition: Callable[[], bool], what: str, log: Path) -> None:
        """Raises ClusterError, with the end of the log."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if self.record is None or time.monotonic() > deadline:
                last = log.read_text().strip().splitlines()[-1:] if log.exists() else []
                raise ClusterError(f"{self.name} never {what} ({log}): {' '.join(last) or 'it says nothing'}")
            time.sleep(0.05)


def _enter(entrances: Sequence[Path]) -> str:
    """Lines of a shell by which it moves itself."""
    return "; ".join(f"echo $$ > {shlex.quote(str(path))}" for path in entrances)
