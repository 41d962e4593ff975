"""docs/operating.md, 'A root that stays offline', followed to the letter: only its directories are others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nodeseal.authority.signer import Signer
from nodeseal.mesh.spiffe import SpiffeId
from support.issued import issue

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operating.md"


def test_node_that_never_had_the_roots_key_issues(tmp_path: Path) -> None:
    section = PAGE.read_text().partition("### A root that stays offline\n")[2].partition("\n### ")[0]
    blocks = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for name in ("home", "node", "stick"):
        (tmp_path / name).mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for at, text in zip(("home", "node", "home", "node"), blocks, strict=True):
        script = text.replace("/media/stick", f"{tmp_path}/stick").replace("/etc/nodeseal", f"{tmp_path}/node")
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=tmp_path / at,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "an agent can use it" in done.stdout
    ca = tmp_path / "node" / "ca"
    assert {one.name for one in ca.iterdir()} == {"root.pem", "intermediate.pem", "intermediate.key"}
    now = datetime.now(UTC)
    identity = SpiffeId("example.org", "default", "web")
    assert issue(Signer.load(ca, now), identity, lifetime=timedelta(hours=1), now=now)
    assert {one.name for one in (tmp_path / "stick").iterdir()} == {"root.pem", "ask.csr", "answer.pem"}
