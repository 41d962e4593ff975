"""The commands of a page, run as they stand there: `nodeseal` and `kubectl` of this checkout, before a cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cluster.cluster import Cluster
from cluster.errors import CommandError

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE_IMAGE = "registry.example.com/nodeseal:0.1.0"
"""What pages call the image."""

_SECONDS = 200.0


def commands(page: Path, heading: str) -> list[str]:
    """Of a section: those in its blocks that begin with `kubectl` or `nodeseal`, each with the lines it goes on in."""
    section = page.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line for line in lines if line.startswith(("kubectl ", "nodeseal "))]


class Reader:
    """Somebody who has the checkout, a kubeconfig, and the image on every node."""

    def __init__(self, cluster: Cluster, image: str) -> None:
        self._cluster = cluster
        self._bin = cluster.plan.directory / "reader"
        self._bin.mkdir(exist_ok=True)
        (self._bin / "nodeseal").write_text(f'#!/bin/sh\nexec {sys.executable} -m nodeseal "$@"\n')
        (self._bin / "nodeseal").chmod(0o755)
        for node in cluster.nodes:
            node.run("ctr", "-n", "k8s.io", "images", "tag", "--force", image, PAGE_IMAGE)

    def run(self, command: str) -> str:
        """What it prints. Raises CommandError when it fails."""
        path = f'export PATH="{self._bin}:{REPOSITORY / "deploy"}:$PATH"; '
        argv = self._cluster.client(["bash", "-o", "pipefail", "-c", path + command])
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            raise CommandError([command], done.returncode, done.stderr or done.stdout)
        return done.stdout
