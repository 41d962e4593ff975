"""What is in deploy/, as the programs that it is for understand it."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "nodeseal-agent.service"


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Every line of it: what systemd does not know it says, and then leaves out."""
    unit = tmp_path / UNIT.name
    command = shutil.which("true")
    unit.write_text(UNIT.read_text().replace("/opt/nodeseal/bin/nodeseal", str(command)))
    verify = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("KillMode=process", "KillMode=proces"))
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert "kill mode" in done.stderr


def test_end_of_the_agent_leaves_the_cores_alone() -> None:
    """They are processes of the same unit."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    assert (service["KillMode"], service["OOMPolicy"], service["Restart"]) == ("process", "continue", "always")
