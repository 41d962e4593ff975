"""Images that are not of this checkout: of a former commit, and versions that fail."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from cluster.agent_image import SITE, agent_layers
from cluster.cluster import Cluster
from cluster.images import APPS_PACKAGES, base_layer, layer_of, name_of, write_image
from cluster.programs import run

CHECKOUT = Path(__file__).resolve().parents[3]
FORMER = "nodeseal.test/nodeseal:former"
EXITS, UNREADY, CORELESS = (f"nodeseal.test/nodeseal:{word}" for word in ("exits", "unready", "coreless"))

_EXITS = b"#!/bin/sh\necho 'nodeseal: this version cannot start' >&2\nexit 1\n"
_UNREADY = b"#!/bin/sh\nwhile :; do touch /run/health/alive; sleep 1; done\n"
# The agent is whole, and takes over; the core that it starts ends at once.
_CORELESS = b"raise SystemExit('this version of the core cannot start')\n"


def failing_images() -> list[Path]:
    """The archives of EXITS, UNREADY and CORELESS. Raises ClusterError."""
    small = base_layer(APPS_PACKAGES)
    layers, config = agent_layers()
    program, core = "usr/local/bin/nodeseal", f"{SITE}/nodeseal/splice/process.py"
    return [
        write_image("exits", EXITS, [small, layer_of({program: (_EXITS, 0o755)})], config),
        write_image("unready", UNREADY, [small, layer_of({program: (_UNREADY, 0o755)})], config),
        write_image("coreless", CORELESS, [*layers, layer_of({core: (_CORELESS, 0o644)})], config),
    ]


def image_of(commit: str) -> Path:
    """The archive of a former commit's image, made as this checkout's. Raises ClusterError, TimeoutExpired."""
    with tempfile.TemporaryDirectory(prefix="nodeseal-former-") as directory:
        there = Path(directory, "checkout")
        run(["git", "-C", CHECKOUT, "worktree", "add", "--quiet", "--detach", there, commit])
        try:
            path = f"PYTHONPATH={there}/agent:{there}/lab:{there}/tests:{there}"
            python = ["env", f"--chdir={there}", path, sys.executable]
            run([*python, "setup.py", "-q", "build_ext", "--inplace"], seconds=600)
            return Path(run([*python, "-m", "cluster", "image"], seconds=600).splitlines()[-1])
        finally:
            run(["git", "-C", CHECKOUT, "worktree", "remove", "--force", there])


def load_former(cluster: Cluster, archive: Path) -> None:
    """Gives it to the nodes under the name FORMER: its own may be the present one's. Raises ClusterError."""
    cluster.load(archive)
    for node in cluster.nodes:
        node.run("ctr", "--namespace", "k8s.io", "images", "tag", "--force", name_of(archive), FORMER)
