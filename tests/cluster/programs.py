"""The programs that a cluster is made of, and running those that only ask something."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.errors import CommandError, MissingProgramError
from support.api_server import PROGRAMS

KUBERNETES = PROGRAMS / "bin"
CNI_PLUGINS = Path("/usr/lib/cni")
_BUILT = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
_DEBIAN = {
    "containerd": "containerd",
    "runc": "runc",
    "ctr": "containerd",
    "ip": "iproute2",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}


def require_programs() -> None:
    """Raises MissingProgramError."""
    for name in _BUILT:
        if not (KUBERNETES / name).exists():
            raise MissingProgramError(KUBERNETES / name, "`make cluster-programs` builds it")
    for name, package in _DEBIAN.items():
        if shutil.which(name) is None:
            raise MissingProgramError(name, f"install it with: apt-get install {package}")
    if not (CNI_PLUGINS / "ptp").exists():
        raise MissingProgramError(CNI_PLUGINS / "ptp", "install it with: apt-get install containernetworking-plugins")


def run(
    argv: Sequence[str | Path],
    *,
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = 120.0,
) -> str:
    """A command that has to work; what it prints. `text`: its standard input. Raises CommandError."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words,
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, **environment} if environment else None,
    )
    if done.returncode != 0:
        raise CommandError(words, done.returncode, done.stderr or done.stdout)
    return done.stdout
