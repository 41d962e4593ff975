"""The commands of docs/upgrade-on-kubernetes.md and of docs/install-on-kubernetes.md, as they stand there."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.cluster import Cluster
from cluster.errors import ClusterError
from cluster.programs import run
from support.api_server import HELM

CHECKOUT = Path(__file__).resolve().parents[3]
UPGRADE = CHECKOUT / "docs" / "upgrade-on-kubernetes.md"
INSTALL = CHECKOUT / "docs" / "install-on-kubernetes.md"
_BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: Path, heading: str) -> list[str]:
    """Those of a section, by its heading, one after another. Raises ClusterError when there is none."""
    section = re.split(r"^#+ .*\n", page.read_text().partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = "".join(_BLOCK.findall(section)).replace("\\\n", " ").splitlines()
    if not lines:
        raise ClusterError(f"{page} has no commands under '{heading}'")
    return [re.sub(r" +", " ", line.partition("  #")[0]).strip() for line in lines]


class Page:
    """Runs them where the API server is reached. `words`: what stands in the place of a word of the page."""

    def __init__(self, cluster: Cluster, page: Path, words: Mapping[str, str]) -> None:
        self._cluster = cluster
        self._page = page
        self._words = words

    def command(self, heading: str, beginning: str, **words: str) -> str:
        """The one of a section that begins so, with what is this cluster's put in. Raises ClusterError."""
        for line in commands(self._page, heading):
            if line.startswith(beginning):
                for old, new in {**self._words, **words}.items():
                    line = line.replace(old, new)
                return line
        raise ClusterError(f"{self._page} has no command '{beginning} ...' under '{heading}'")

    def run(self, line: str, seconds: float = 300.0) -> str:
        """A line in a shell; what it prints. Raises CommandError."""
        programs = f'PATH={HELM.parent}:$PATH; nodeseal() {{ "{sys.executable}" -m nodeseal "$@"; }}; set -o pipefail'
        words = ["env", f"--chdir={CHECKOUT}", "bash", "-ec", f"{programs}; {line}"]
        return run(self._cluster.client(words), seconds=seconds)
