"""Starts that fail: one clear line, exit status 1, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.api import client
from nodeseal.authority.creation import init_authority
from nodeseal.contracts.api import CONNECTIONS, STATUS
from nodeseal.linux.lock_file import LockFile
from nodeseal.local import run_directory

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the agent's start goes on as root only")


class Place:
    """A configuration in which everything is right, for one thing to be made wrong."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.run_dir = tmp_path / "run"
        self.ca = tmp_path / "ca"
        self.mesh = tmp_path / "mesh"
        self.mesh.mkdir()
        self.config = tmp_path / "agent.yaml"
        self.config.write_text(f"node: node1\nrun_dir: {self.run_dir}\nmesh: {self.mesh}\nca: {self.ca}\n")

    def make_ca(self, now: datetime | None = None) -> None:
        init_authority(self.ca, trust_domain="example.org", now=now or datetime.now(UTC))

    def start(self, code: str = "") -> tuple[int, str]:
        """(exit status, standard error without the log). `code` runs first in the agent's process."""
        program = f"import sys\n{code}\nfrom nodeseal.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
        out = subprocess.run(
            [sys.executable, "-c", program, "agent", "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = [line for line in out.stderr.splitlines() if not line.startswith("20")]
        return out.returncode, "\n".join(lines)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_bad_configuration(place: Place) -> None:
    place.config.write_text("node: node1\n")
    status, text = place.start()
    assert status == 1
    assert text.startswith("nodeseal: ")
    assert "agent.yaml:1: mesh: expected the path of a directory" in text


def test_not_root(place: Place) -> None:
    place.make_ca()
    status, text = place.start("import os\nos.geteuid = lambda: 1000")
    assert (status, text) == (1, "nodeseal: the agent needs root's privileges: run it as root")
    assert not place.run_dir.exists()


@needs_root
def test_mesh_directory_that_is_not_there(place: Place) -> None:
    place.make_ca()
    place.mesh.rmdir()
    status, text = place.start()
    assert status == 1
    assert text.endswith("is not a directory; create it or correct the path")
    assert not place.run_dir.exists()


@needs_root
def test_ca_directory_that_is_not_there(place: Place) -> None:
    status, text = place.start()
    assert status == 1
    assert "\n" not in text
    assert str(place.ca) in text
    assert not place.run_dir.exists()


@needs_root
def test_expired_ca(place: Place) -> None:
    place.make_ca(datetime.now(UTC) - timedelta(days=800))
    status, text = place.start()
    assert status == 1
    assert "\n" not in text
    assert "expired" in text
    assert not place.run_dir.exists()


@needs_root
def test_second_agent(place: Place) -> None:
    place.make_ca()
    place.run_dir.mkdir()
    lock = LockFile(place.run_dir / run_directory.AGENT_LOCK)
    status, text = place.start()
    expected = f"nodeseal: another agent (pid {os.getpid()}) runs for {place.run_dir}; stop it first"
    assert (status, text) == (1, expected)
    assert lock.path.exists()
    lock.release()


@needs_root
def test_core_that_does_not_start(place: Place) -> None:
    place.make_ca()
    code = (
        "import nodeseal.cores.process as b\nb.spawn.__kwdefaults__['core_command'] = (sys.executable, '-c', 'exit(3)')"
    )
    status, text = place.start(code)
    assert status == 1
    assert text.startswith("nodeseal: the core did not start: ")
    assert "\n" not in text
    assert not place.run_dir.exists()


@needs_root
@pytest.mark.parametrize("line", ["bcc is missing: apt-get install python3-bpfcc", "no cgroup v2 tree is mounted"])
def test_capture_that_cannot_be_prepared(place: Place, line: str) -> None:
    place.make_ca()
    fake = Path(__file__).parent.parent / "support" / "fake_core_process.py"
    code = (
        "import nodeseal.cores.process as b, nodeseal.capture.node as e\n"
        f"b.spawn.__kwdefaults__['core_command'] = (sys.executable, {str(fake)!r})\n"
        f"def prepare(self): raise e.CaptureError({line!r})\n"
        "e.NodeCapture.prepare = prepare"
    )
    status, text = place.start(code)
    assert (status, text) == (1, f"nodeseal: {line}")
    assert not place.run_dir.exists()


@needs_root
def test_agent_that_starts_answers_what_it_does(place: Place) -> None:
    place.make_ca()
    done = place.path / "done"
    code = (
        "import time\nfrom pathlib import Path\nfrom nodeseal.capture.errors import CaptureError\n"
        "from nodeseal.capture.node import NodeCapture\n"
        "def prepare(self):\n"
        f"    while not Path({str(done)!r}).exists(): time.sleep(0.01)\n"
        "    raise CaptureError('that was all')\n"
        "NodeCapture.prepare = prepare"
    )
    asked: list[str] = []

    def ask() -> None:
        """Until the agent says what it does; before it listens, that it is there."""
        while not asked or "preparing capture" not in asked[-1]:
            try:
                status = client.ask(place.run_dir, STATUS)
            except client.AgentGone as error:
                asked.append(str(error))
            else:
                asked.append(status.agent.starting.doing if status.agent.starting is not None else "")
            time.sleep(0.01)
        with pytest.raises(client.AgentError, match="the agent is starting: preparing capture"):
            client.ask(place.run_dir, CONNECTIONS)
        done.touch()

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        status, text = place.start(code)
        asking.result()
    assert (status, text) == (1, "nodeseal: that was all")
    # From the moment on that it has its lock, nobody is told that none runs.
    said = [line for line in asked if line.startswith("the agent for")]
    assert all("does not answer yet" in line for line in said)
    assert not any("no agent runs" in line for line in asked[asked.index(said[0]) if said else len(asked) :])


GOES_NO_FURTHER = """
from nodeseal.daemon import main as process
async def serve(*arguments): raise process.StartError("it would have gone on")
process._serve = serve
"""


@needs_root
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_run_directory_that_others_can_change(place: Place, mode: int) -> None:
    place.make_ca()
    place.run_dir.mkdir()
    place.run_dir.chmod(mode)
    status, text = place.start(GOES_NO_FURTHER)
    assert status == 1
    assert text.endswith(
        f"run_dir: others can change the run directory {place.run_dir}: its mode is {mode:04o}; chown root and chmod "
        "700 it, or name another"
    )
    assert list(place.run_dir.iterdir()) == []


@needs_root
def test_run_directory_of_another_user(place: Place) -> None:
    place.make_ca()
    place.run_dir.mkdir(mode=0o700)
    os.chown(place.run_dir, 65534, 65534)
    status, text = place.start(GOES_NO_FURTHER)
    assert (status, "it belongs to the user with the number 65534" in text) == (1, True)


@needs_root
def test_key_of_the_ca_that_others_can_read(place: Place) -> None:
    place.make_ca()
    (place.ca / "intermediate.key").chmod(0o644)
    status, text = place.start(GOES_NO_FURTHER)
    assert status == 1
    assert f"ca: others can read the key in {place.ca}/intermediate.key: its mode is 0644; " in text
    assert not place.run_dir.exists()
