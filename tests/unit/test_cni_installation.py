"""The network plugin on the disk: put in place, kept there, taken out, and never named without being there."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nodeseal.cni import installation
from nodeseal.cni.installation import Installation, InstallationError
from nodeseal.cni.upkeep import Upkeep
from nodeseal.contracts.pod_start import WithoutEnrolment
from nodeseal.linux import atomic_file
from nodeseal.linux.atomic_file import ChangedMeanwhileError, replace_file
from nodeseal.local import config as configuration
from nodeseal.local import run_directory
from nodeseal.local.config import ConfigError
from nodeseal.local.pod_start import PodStart, Wait
from nodeseal.mesh.reasons import ProblemWord
from support.agent_fakes import until

LIST = '{\n  "cniVersion": "1.0.0",\n  "name": "net",\n  "plugins": [\n    {"type": "bridge"}\n  ]\n}\n'
CONF = '{"cniVersion": "1.0.0", "name": "net", "type": "bridge"}'


class Machine:
    """The directories of a runtime, and an agent's."""

    def __init__(self, tmp_path: Path) -> None:
        self.lists, self.programs, self.run_dir = tmp_path / "net.d", tmp_path / "bin", tmp_path / "run"
        for directory in (self.lists, self.programs, self.run_dir):
            directory.mkdir()
        self.program = tmp_path / "nodeseal-cni"
        self.program.write_bytes(b"a program")

    def installation(self, run_dir: Path | None = None, **settings: Any) -> Installation:
        made = PodStart(self.lists, self.programs, **settings)
        return Installation(made, run_dir or self.run_dir, self.program)

    def put(self, name: str, text: str = LIST) -> Path:
        path = self.lists / name
        path.write_text(text)
        return path

    def types(self, name: str) -> list[str]:
        return [one["type"] for one in json.loads((self.lists / name).read_text())["plugins"]]

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.lists.iterdir())

    @property
    def installed(self) -> Path:
        return self.programs / "nodeseal-cni"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    nothing = tmp_path / "default"
    monkeypatch.setattr(installation, "DEFAULT_CONFIG_DIRECTORY", nothing)
    monkeypatch.setattr(installation, "DEFAULT_BINARY_DIRECTORY", nothing)
    return Machine(tmp_path)


def test_first_list_by_name_gets_the_entry_and_gives_it_back(machine: Machine) -> None:
    first = machine.put("10-net.conflist")
    machine.put("20-other.conflist")
    first.chmod(0o640)
    done = machine.installation(on_failure=WithoutEnrolment.OPEN).settle()
    assert done == f"wrote {machine.installed}; changed {first}"
    assert machine.types("10-net.conflist") == ["bridge", "nodeseal-cni"]
    entry = json.loads(first.read_text())["plugins"][1]
    assert entry["socket"] == f"{machine.run_dir}/cni.sock"
    assert entry["on_failure"] == "open"
    assert entry["open_namespaces"] == ["kube-system", "nodeseal-system"]
    assert machine.types("20-other.conflist") == ["bridge"]
    assert stat.S_IMODE(first.stat().st_mode) == 0o640
    assert stat.S_IMODE(machine.installed.stat().st_mode) == 0o755
    assert machine.installation(on_failure=WithoutEnrolment.OPEN).settle() is None
    removed, failed = installation.remove(machine.run_dir)
    assert removed == [f"nodeseal-cni from {first}", str(machine.installed)]
    assert not failed
    assert first.read_text() == LIST
    assert machine.names == ["10-net.conflist", "20-other.conflist"]
    assert installation.remove(machine.run_dir) == ([], [])


def test_nothing_stays_of_an_agent_that_was_killed_while_it_wrote(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    machine.put("10-net.conflist")
    machine.installation().settle()
    with monkeypatch.context() as patch:
        patch.setattr(atomic_file.os, "fsync", killed)
        patch.setattr(atomic_file.os, "unlink", lambda _path: None)
        for path in (machine.lists / "10-net.conflist", machine.installed, machine.run_dir / "enrolled-namespaces"):
            with pytest.raises(Killed):
                replace_file(path, b"half", 0o600)
    (machine.run_dir / ".node.pem.new").touch()
    (machine.run_dir / "new").touch()
    assert len(machine.names) == 2
    installation.remove(machine.run_dir)
    assert machine.names == ["10-net.conflist"]
    assert list(machine.programs.iterdir()) == []
    drafts = run_directory.drafts(machine.run_dir)
    assert [path.name[:9] for path in drafts] == [".node.pem", ".nodeseal"]
    assert set(drafts) <= set(run_directory.own_files(machine.run_dir))


def test_program_is_there_before_a_list_names_it(machine: Machine) -> None:
    first = machine.put("10-net.conflist")
    machine.program.unlink()
    with pytest.raises(InstallationError, match="install nodeseal again"):
        machine.installation().settle()
    machine.program.write_bytes(b"a program")
    machine.programs.rmdir()
    with pytest.raises(InstallationError, match="mount that directory writable"):
        machine.installation().settle()
    assert first.read_text() == LIST


def test_program_is_replaced_by_another_version(machine: Machine) -> None:
    machine.put("10-net.conflist")
    machine.installation().settle()
    before = machine.installed.stat().st_ino
    machine.program.write_bytes(b"another program")
    assert machine.installation().settle() == f"wrote {machine.installed}"
    assert machine.installed.read_bytes() == b"another program"
    # One that runs is not written into.
    assert machine.installed.stat().st_ino != before


def test_program_stays_while_anything_names_it(machine: Machine) -> None:
    machine.put("10-net.conflist")
    machine.installation().settle()
    copy = {
        "cniVersion": "1.0.0",
        "type": "multus",
        "delegates": [json.loads((machine.lists / "10-net.conflist").read_text())],
    }
    multus = machine.put("00-multus.conf", json.dumps(copy))
    removed, (failed,) = installation.remove(machine.run_dir)
    assert removed == [f"nodeseal-cni from {machine.lists}/10-net.conflist"]
    assert str(multus) in failed
    assert machine.installed.exists()
    multus.unlink()
    assert installation.remove(machine.run_dir) == ([str(machine.installed)], [])


def test_another_run_directory_has_its_own_entry(machine: Machine, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    machine.put("10-net.conflist")
    for run_dir in (machine.run_dir, other):
        machine.installation(run_dir).settle()
    assert machine.types("10-net.conflist") == ["bridge", "nodeseal-cni", "nodeseal-cni"]
    assert installation.remove(other) == ([f"nodeseal-cni from {machine.lists}/10-net.conflist"], [])
    assert machine.types("10-net.conflist") == ["bridge", "nodeseal-cni"]
    assert machine.installed.exists()


def test_single_plugin_gets_a_list_in_front(machine: Machine) -> None:
    conf = machine.put("10-net.conf", CONF)
    made = machine.lists / "00-nodeseal.conflist"
    assert f"made {made} of 10-net.conf" in str(machine.installation().settle())
    assert machine.types("00-nodeseal.conflist") == ["bridge", "nodeseal-cni"]
    assert machine.installation().settle() is None
    conf.write_text(CONF.replace("bridge", "ptp"))
    assert machine.installation().settle() == f"made {made} of 10-net.conf"
    assert machine.types("00-nodeseal.conflist") == ["ptp", "nodeseal-cni"]
    machine.put("05-net.conflist")
    machine.installation().settle()
    assert machine.names == ["05-net.conflist", "10-net.conf"]
    assert machine.types("05-net.conflist") == ["bridge", "nodeseal-cni"]
    (machine.lists / "05-net.conflist").unlink()
    machine.installation().settle()
    removed, failed = installation.remove(machine.run_dir)
    assert removed == [str(made), str(machine.installed)]
    assert not failed
    assert machine.names == ["10-net.conf"]


def test_list_that_comes_to_stand_first_has_the_entry_alone(machine: Machine) -> None:
    machine.put("10-net.conflist")
    machine.installation().settle()
    machine.put("05-net.conflist")
    machine.installation().settle()
    assert machine.types("05-net.conflist") == ["bridge", "nodeseal-cni"]
    assert (machine.lists / "10-net.conflist").read_text() == LIST


@pytest.mark.parametrize("text", ["{", '{"cniVersion": "0.3.0", "plugins": [{}]}', "{}", "\xff", "x" * (2 << 20)])
def test_what_cannot_be_used_is_left_as_it_is(text: str, machine: Machine) -> None:
    first = machine.lists / "10-net.conflist"
    first.write_bytes(text.encode("latin-1"))
    with pytest.raises(InstallationError, match=r"10-net\.conflist is left as it is"):
        machine.installation().settle()
    assert first.read_bytes() == text.encode("latin-1")
    assert machine.names == ["10-net.conflist"]


def test_symbolic_link_stays_one(machine: Machine, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    real.write_text(LIST)
    (machine.lists / "10-net.conflist").symlink_to(real)
    machine.installation().settle()
    assert (machine.lists / "10-net.conflist").is_symlink()
    assert "nodeseal-cni" in real.read_text()
    installation.remove(machine.run_dir)
    assert real.read_text() == LIST
    real.unlink()
    with pytest.raises(InstallationError, match="links to"):
        machine.installation().settle()


def test_no_list_yet(machine: Machine) -> None:
    machine.put("README.txt", "nothing")
    with pytest.raises(InstallationError, match="no list of network plugins yet"):
        machine.installation().settle()
    assert not machine.installed.exists()


def test_what_somebody_else_writes_meanwhile_is_not_lost(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine.put("10-net.conflist")
    status = first.stat()
    first.write_text(LIST.replace("bridge", "ptp"))
    with pytest.raises(ChangedMeanwhileError):
        replace_file(first, b"ours", 0, status)
    assert "ptp" in first.read_text()
    assert machine.names == ["10-net.conflist"]

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_file.os, "fsync", full)
    with pytest.raises(InstallationError, match="No space left"):
        machine.installation().settle()
    assert machine.names == ["10-net.conflist"]
    assert not list(machine.programs.iterdir())


def test_look_says_what_is_not_in_place(machine: Machine) -> None:
    def found() -> list[str]:
        return list(machine.installation().look())

    assert "has no list" in found()[0]
    machine.put("10-net.conflist")
    assert "does not name nodeseal-cni" in found()[0]
    machine.installation().settle()
    assert found() == []
    machine.installed.unlink()
    assert "no pod can start or end" in found()[0]
    machine.put("10-net.conflist", "{")
    assert "no JSON" in found()[0]


def test_owner_is_kept(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    first = machine.put("10-net.conflist")
    os.chown(first, 65534, 65534)
    machine.installation().settle()
    assert (first.stat().st_uid, first.stat().st_gid) == (65534, 65534)


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story()

    asyncio.run(bounded())


def test_upkeep_puts_back_what_another_tool_writes_anew(machine: Machine) -> None:
    async def story() -> None:
        first = machine.put("10-net.conflist")
        upkeep = Upkeep(machine.installation())
        task = asyncio.create_task(upkeep.run())
        await until(lambda: "nodeseal-cni" in first.read_text(), "installed")
        first.write_text(LIST)
        await until(lambda: "nodeseal-cni" in first.read_text(), "installed again")
        draft = machine.lists / "draft"
        draft.write_text(LIST)
        draft.rename(first)
        await until(lambda: "nodeseal-cni" in first.read_text(), "installed in another file")
        machine.installed.unlink()
        await until(machine.installed.exists, "the program again")
        assert not list(upkeep.problems())
        first.write_text("{")
        await until(lambda: list(upkeep.problems()), "told")
        (problem,) = upkeep.problems()
        assert problem.word is ProblemWord.PLUGIN_MISSING
        assert "no JSON" in problem.text
        assert first.read_text() == "{"
        first.write_text(LIST)
        await until(lambda: not list(upkeep.problems()), "well again")
        task.cancel()

    play(story)


def test_upkeep_tells_of_a_tool_that_does_not_give_in(machine: Machine) -> None:
    async def story() -> None:
        first = machine.put("10-net.conflist")
        upkeep = Upkeep(machine.installation())
        task = asyncio.create_task(upkeep.run())
        for _ in range(10):
            await until(lambda: "nodeseal-cni" in first.read_text(), "installed")
            await until(lambda: not list(machine.lists.glob(".nodeseal-*")), "written")
            first.write_text(LIST)
        await until(lambda: list(upkeep.problems()), "told")
        assert "again and again" in next(upkeep.problems()).text
        task.cancel()

    play(story)


def test_settings(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"

    def loaded(text: str) -> PodStart | None:
        file.write_text(f"node: n\nmesh: mesh\nca: ca\n{text}")
        return configuration.load(file).pod_start

    assert loaded("") is None
    assert loaded("cni: {}") == PodStart()
    given = "cni: {config_directory: net.d, binary_directory: /b, on_failure: open, open_namespaces: []}"
    assert loaded(given) == PodStart(tmp_path / "net.d", Path("/b"), WithoutEnrolment.OPEN, ())
    settled = loaded("cni: {wait: settled}")
    assert settled is not None
    assert settled.wait is Wait.SETTLED
    for wrong in ("{wait: 5s}", "{on_failure: maybe}", "{open_namespaces: [A/B]}", "{x: 1}", "[]"):
        with pytest.raises(ConfigError, match="cni"):
            loaded(f"cni: {wrong}")
