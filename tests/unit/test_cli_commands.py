"""The command line: which node, which output, which exit status."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nodeseal import __version__
from nodeseal.api.client import AgentGone, ask
from nodeseal.cli import nodes
from nodeseal.cli.errors import UsageError
from nodeseal.cli.main import main
from nodeseal.contracts.api import PAGE_MAX
from nodeseal.contracts.api import STATUS as STATUS_OPERATION
from nodeseal.daemon.cleanup import Report
from nodeseal.local import registry, run_directory

CORE_LOCK = "core-1.pid"


class FakeAgent:
    """Answers every request on agent.sock with one prepared answer, and notes what it was asked for. `status`: of HTTP;
    None: it speaks JSON lines, as agents once did."""

    def __init__(self, run_dir: Path, answer: dict[str, Any], status: int | None = 200) -> None:
        import socket

        run_dir.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(run_dir / run_directory.AGENT_SOCKET))
        self._listener.listen()
        body = json.dumps(answer).encode() + b"\n"
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self._answer = body if status is None else head + body
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                self.asked.append(lines.readline().decode().strip())
                connection.sendall(self._answer)

    def end(self) -> None:
        import socket

        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


STATUS = {
    "node": "node1",
    "agent": {"pid": 1, "version": "0.1.0"},
    "core": {"pid": 2, "state": "running", "error": None},
    "mesh": {"directory": "/m", "epoch": 1, "error": None, "error_since": None},
    "workloads": [],
    "problems": [],
}
ROW = {
    "id": 1,
    "direction": "outbound",
    "source": "10.0.0.1:1",
    "source_workload": None,
    "destination": "10.0.0.2:2",
    "destination_workload": None,
    "state": "open",
    "mtls": False,
    "peer": None,
    "reason": "destination-not-in-mesh",
    "bytes_sent": 1,
    "bytes_received": 1,
    "age_seconds": 1.0,
    "closed_seconds": None,
}


def has(found: Any, expected: Any) -> bool:
    """Whether it is that, or an object with more keys. What an agent does not say is in the output all the same."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return all(key in found and has(found[key], value) for key, value in expected.items())
    return bool(found == expected)


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[FakeAgent]]:
    started: list[FakeAgent] = []
    yield started
    for agent in started:
        agent.end()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"nodeseal {__version__}\n"
    assert main(["version", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": __version__}


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stat"]) == 2
    assert "unknown command 'stat'" in capsys.readouterr().err


def test_core_is_not_offered_but_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "\n  core " not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["core", "--help"])
    assert "nodeseal core" in capsys.readouterr().out


def test_core_command_imports_none_of_the_others() -> None:
    code = (
        "import sys\nfrom nodeseal.cli.main import main\n"
        "try: main(['core', '--help'])\nexcept SystemExit: pass\n"
        "others = ('nodeseal_lab', 'nodeseal.daemon', 'nodeseal.node', 'yaml', 'asyncio', 'click')\n"
        "print([m for m in sys.modules if m.startswith(others)])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_status_as_json_has_a_list_of_nodes(
    tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
) -> None:
    agents.append(FakeAgent(tmp_path, STATUS))
    assert main(["status", "--run-dir", str(tmp_path), "-o", "json"]) == 0
    (node,) = json.loads(capsys.readouterr().out)["nodes"]
    assert has(node, {**STATUS, "run_dir": str(tmp_path)})


class TestStatusCheck:
    WARNING: ClassVar = {
        "word": "core-crashed",
        "level": "warning",
        "about": None,
        "text": "the core crashed once in the last 10 minutes and was started again",
        "remedy": "see core.log",
    }
    ERROR: ClassVar = {
        "word": "not-enrolled",
        "level": "error",
        "about": "default/siem",
        "text": "default/siem: the mesh state gives it no 'netns'",
        "remedy": "give it one there",
    }

    @pytest.mark.parametrize(
        ("problems", "exit_status", "line"),
        [
            ([], 0, "ok: node1: 0 workloads enrolled"),
            ([WARNING], 1, f"warning: node1: core-crashed: {WARNING['text']}"),
            (
                [WARNING, ERROR],
                2,
                f"error: node1: not-enrolled: {ERROR['text']}; node1: core-crashed: {WARNING['text']}",
            ),
            ([ERROR] * 5, 2, "error: " + f"node1: not-enrolled: {ERROR['text']}; " * 3 + "and 2 more"),
        ],
    )
    def test_one_line_and_an_exit_status(
        self,
        tmp_path: Path,
        agents: list[FakeAgent],
        capsys: pytest.CaptureFixture[str],
        problems: list[dict[str, Any]],
        exit_status: int,
        line: str,
    ) -> None:
        agents.append(FakeAgent(tmp_path, {**STATUS, "problems": problems}))
        assert main(["status", "--check", "--run-dir", str(tmp_path)]) == exit_status
        assert capsys.readouterr().out == line + "\n"

    @pytest.mark.parametrize(
        ("reasons", "line"),
        [
            (["joining"], "0 workloads enrolled, 1 joining"),
            ([None, "pending", "joining", "leaving"], "1 workload enrolled, 1 pending, 1 joining, 1 leaving"),
            ([None, None, "not-wanted"], "2 workloads enrolled"),
        ],
    )
    def test_what_is_on_its_way_is_no_fault_and_is_said(
        self,
        tmp_path: Path,
        agents: list[FakeAgent],
        capsys: pytest.CaptureFixture[str],
        reasons: list[str | None],
        line: str,
    ) -> None:
        workloads = [{"workload": "default/a", "enrolled": reason is None, "reason": reason} for reason in reasons]
        agents.append(FakeAgent(tmp_path, {**STATUS, "problems": [], "workloads": workloads}))
        assert main(["status", "--check", "--run-dir", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"ok: node1: {line}\n"

    def test_line_that_cannot_be_written_is_no_warning(self, tmp_path: Path, agents: list[FakeAgent]) -> None:
        agents.append(FakeAgent(tmp_path, {**STATUS, "problems": []}))
        with Path("/dev/full").open("w") as full, contextlib.redirect_stdout(full):
            assert main(["status", "--check", "--run-dir", str(tmp_path)]) == 2

    def test_no_agent_is_an_error(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["status", "--check", "--run-dir", str(tmp_path)]) == 2
        out = capsys.readouterr()
        assert out.out.startswith(f"error: no-agent: no agent runs for {tmp_path}; ")
        assert out.out.count("\n") == 1
        assert out.err == ""

    def test_agent_of_an_older_version_is_no_success(
        self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
    ) -> None:
        agents.append(FakeAgent(tmp_path, {"ok": False, "error": "the request is not JSON"}, status=None))
        assert main(["status", "--check", "--run-dir", str(tmp_path)]) == 2
        out = capsys.readouterr().out
        assert out == (
            f"error: no-agent: the agent at {tmp_path}/agent.sock is of another version than this command "
            f"({__version__}); start the agent anew\n"
        )

    def test_as_json(self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]) -> None:
        agents.append(FakeAgent(tmp_path, {**STATUS, "problems": [self.WARNING, self.ERROR]}))
        assert main(["status", "--check", "--run-dir", str(tmp_path), "-o", "json"]) == 2
        assert json.loads(capsys.readouterr().out) == {
            "level": "error",
            "problems": [{"node": "node1", **self.ERROR}, {"node": "node1", **self.WARNING}],
        }


def test_no_agent_is_one_line_and_status_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--run-dir", str(tmp_path)]) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err == f"nodeseal: no agent runs for {tmp_path}; start it with 'nodeseal agent --config FILE'\n"


def test_refusal_of_the_agent_is_passed_on(
    tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
) -> None:
    agents.append(FakeAgent(tmp_path, {"status": 503, "detail": "the core is not running"}, status=503))
    assert main(["connections", "--run-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "nodeseal: the core is not running\n"


def test_connections_as_json_carry_their_node(
    tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
) -> None:
    agents.append(FakeAgent(tmp_path, {"node": "node1", "connections": [ROW], "errors": []}))
    assert main(["connections", "--run-dir", str(tmp_path), "-o", "json"]) == 0
    expected = {"node": "node1", "run_dir": str(tmp_path), **ROW}
    out = json.loads(capsys.readouterr().out)
    assert has(out["connections"][0], expected)
    assert (len(out["connections"]), out["refused"], out["errors"]) == (1, [], [])


REFUSED = {
    "workload": "default/a",
    "direction": "inbound",
    "kind": "handshake",
    "status": None,
    "source": "192.0.2.44",
    "source_workload": None,
    "destination": "10.0.0.1:15008",
    "destination_workload": "default/a",
    "peer": None,
    "reason": "peer shows no certificate",
    "count": 3,
    "first_seconds": 9.0,
    "last_seconds": 1.0,
}


def test_refused_peers_are_shown_below_the_connections(
    tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"node": "node1", "connections": [ROW], "refused": [REFUSED], "errors": []}
    agents.append(FakeAgent(tmp_path, answer))
    assert main(["connections", "--run-dir", str(tmp_path)]) == 0
    connections, refused = capsys.readouterr().out.split("\n\n")
    assert "10.0.0.1:1" in connections
    assert "peer shows no certificate" not in connections
    assert refused.splitlines()[1].split() == [
        *("in", "handshake", "192.0.2.44", "a", "10.0.0.1:15008", "3", "9s", "1s"),
        *("peer", "shows", "no", "certificate"),
    ]


def test_refused_peers_as_json_carry_their_node(
    tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"node": "node1", "connections": [], "refused": [REFUSED], "errors": []}
    agents.append(FakeAgent(tmp_path, answer))
    assert main(["connections", "--run-dir", str(tmp_path), "-o", "json"]) == 0
    expected = {"node": "node1", "run_dir": str(tmp_path), **REFUSED}
    (row,) = json.loads(capsys.readouterr().out)["refused"]
    assert has(row, expected)


def test_live_leaves_refused_peers_out(
    tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"node": "node1", "connections": [ROW], "refused": [REFUSED], "errors": []}
    agents.append(FakeAgent(tmp_path, answer))
    assert main(["connections", "--live", "--run-dir", str(tmp_path)]) == 0
    assert "192.0.2.44" not in capsys.readouterr().out


def test_live_leaves_closed_connections_out(tmp_path: Path, agents: list[FakeAgent]) -> None:
    """The agent does."""
    agents.append(FakeAgent(tmp_path, {"node": "node1"}))
    assert main(["connections", "--live", "--run-dir", str(tmp_path)]) == 0
    assert agents[0].asked == [f"GET /v1/connections?live=true&limit={PAGE_MAX} HTTP/1.1"]


def test_connections_by_a_trust_anchor_are_those_that_the_agent_finds(
    tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
) -> None:
    """Peers that were refused are not among them."""
    agents.append(FakeAgent(tmp_path, {"node": "node1", "connections": [ROW], "refused": [REFUSED]}))
    assert main(["connections", "--anchor", "9C:05:D9:FE", "--run-dir", str(tmp_path)]) == 0
    assert agents[0].asked == [f"GET /v1/connections?anchor=9c05d9fe&limit={PAGE_MAX} HTTP/1.1"]
    assert "192.0.2.44" not in capsys.readouterr().out


@pytest.mark.parametrize("anchor", ["", "9c05d9f", "9c05d9fg", "a" * 65])
def test_trust_anchor_of_connections_is_named_by_digits(
    anchor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["connections", "--anchor", anchor, "--run-dir", str(tmp_path)]) == 2
    assert "is no ID of a trust anchor: give 8 to 64 digits of it" in capsys.readouterr().err


class TestWhichWorkloads:
    NAMES = ("shop/web-1", "shop/cart", "bank/web-1")

    def shown(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, *given: str) -> set[str]:
        """Which of the names are in the output."""
        words = [word for name in given for word in ("--workload", name)]
        assert main([command, *words, "--run-dir", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        return {name for name in self.NAMES if name in out}

    def test_of_connections_and_refusals(
        self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = [{**ROW, "workload": name, "source_workload": name} for name in self.NAMES]
        refused = [{**REFUSED, "workload": name, "destination_workload": name} for name in self.NAMES]
        agents.append(FakeAgent(tmp_path, {"node": "node1", "connections": [], "refused": refused, "errors": []}))
        assert self.shown(capsys, tmp_path, "connections", "shop/*") == {"shop/web-1", "shop/cart"}
        agents.pop().end()
        (tmp_path / run_directory.AGENT_SOCKET).unlink()
        agents.append(FakeAgent(tmp_path, {"node": "node1", "connections": rows, "refused": [], "errors": []}))
        assert self.shown(capsys, tmp_path, "connections") == set(self.NAMES)
        assert self.shown(capsys, tmp_path, "connections", "shop/web-1") == {"shop/web-1"}
        assert self.shown(capsys, tmp_path, "connections", "*/web-1") == {"shop/web-1", "bank/web-1"}
        assert self.shown(capsys, tmp_path, "connections", "shop/cart", "bank/*") == {"shop/cart", "bank/web-1"}

    def test_of_a_status(self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]) -> None:
        agents.append(FakeAgent(tmp_path, {**STATUS, "workloads": [{"workload": name} for name in self.NAMES]}))
        assert self.shown(capsys, tmp_path, "status", "shop/*") == {"shop/web-1", "shop/cart"}
        assert main(["status", "--workload", "shop/none", "--run-dir", str(tmp_path)]) == 0
        assert "no such workload is on this node" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["", "shop", "shop/", "/web", "shop/web/1"])
    def test_is_named_with_its_namespace(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["connections", "--workload", name]) == 2
        assert f"{name!r} is no workload: say namespace/name" in capsys.readouterr().err

    def test_monitoring_is_about_whole_nodes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["status", "--check", "--workload", "shop/*"]) == 2
        assert "give one of them" in capsys.readouterr().err


class TestWhichNodes:
    @pytest.fixture(autouse=True)
    def places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nodes, "DEFAULT", tmp_path / "default")
        monkeypatch.setattr(nodes, "LABS", tmp_path / "labs")
        monkeypatch.setattr(registry, "DIRECTORY", tmp_path / "nodes")
        monkeypatch.delenv(nodes.ENVIRONMENT, raising=False)

    def note(self, run_dir: Path, node: str, netns: int | None = -1) -> Path:
        """An agent has started there; by default in a network namespace elsewhere."""
        registry.register(registry.Registered(run_dir, node, run_dir / "agent.yaml", netns))
        return run_dir

    def make(self, path: Path, *names: str) -> Path:
        path.mkdir(parents=True)
        for name in names:
            (path / name).touch()
        return path

    def test_given_directory_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(nodes.ENVIRONMENT, "/elsewhere")
        assert nodes.run_directories(Path("/given")) == [Path("/given")]
        assert nodes.run_directories(None) == [Path("/elsewhere")]

    def test_default_when_a_node_runs_there(self, tmp_path: Path) -> None:
        default = self.make(tmp_path / "default", CORE_LOCK)
        self.make(tmp_path / "labs" / "lab" / "node1", "agent.yaml", run_directory.AGENT_SOCKET)
        assert nodes.run_directories(None) == [default]

    def test_otherwise_the_nodes_of_a_running_lab(self, tmp_path: Path) -> None:
        lab = tmp_path / "labs" / "lab"
        running = [self.make(lab / name, "agent.yaml", run_directory.AGENT_SOCKET) for name in ("node1", "node2")]
        self.make(lab / "node3", "agent.yaml")
        assert nodes.run_directories(None) == running

    def test_node_of_this_network_namespace_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.make(tmp_path / "default", CORE_LOCK)
        lab = tmp_path / "labs" / "lab"
        running = [
            self.make(lab / name, "agent.yaml", run_directory.AGENT_SOCKET) for name in ("node1", "node2", "node3")
        ]
        # Their processes: some that are gone, and this one.
        monkeypatch.setattr(run_directory, "pids", lambda run_dir: [os.getpid() if run_dir == running[1] else 4194302])
        assert nodes.run_directories(None) == [running[1]]

    def test_socket_of_an_agent_stands_for_its_directory(self, tmp_path: Path) -> None:
        assert nodes.run_directories(tmp_path / run_directory.AGENT_SOCKET) == [tmp_path]

    def test_default_when_there_is_nothing(self, tmp_path: Path) -> None:
        assert nodes.run_directories(None) == [tmp_path / "default"]

    def test_run_directories_are_known_wherever_they_lie(self, tmp_path: Path) -> None:
        lab = self.make(tmp_path / "labs" / "lab" / "node1", "agent.yaml", CORE_LOCK)
        site = self.note(self.make(tmp_path / "site", CORE_LOCK), "edge")
        self.note(lab, "node1")
        self.note(tmp_path / "gone", "node9")
        (tmp_path / "nodes" / "torn.json").write_text('{"run_dir": ')
        assert nodes.run_directories(None) == [lab, site]

    def test_own_node_is_found_where_its_directory_is_not_a_standard_one(self, tmp_path: Path) -> None:
        self.make(tmp_path / "default", CORE_LOCK)
        self.make(tmp_path / "labs" / "lab" / "node1", "agent.yaml", CORE_LOCK)
        self.note(self.make(tmp_path / "other", CORE_LOCK), "other")
        own = self.note(self.make(tmp_path / "own", CORE_LOCK), "own", registry.own_namespace())
        assert nodes.run_directories(None) == [own]
        # Nothing of it runs.
        assert self.changed() == [own]

    def changed(self, **options: Any) -> list[Path]:
        return nodes.nodes_to_change("cleanup", options.get("run_dir"), everything=options.get("everything", False))

    def test_nodes_of_others_are_not_changed_without_being_named(self, tmp_path: Path) -> None:
        lab = self.make(tmp_path / "labs" / "lab" / "node1", "agent.yaml", CORE_LOCK)
        site = self.note(self.make(tmp_path / "a site", CORE_LOCK), "edge")
        with pytest.raises(UsageError) as caught:
            self.changed()
        line, *listed = str(caught.value).splitlines()
        assert line == "2 nodes are on this machine, and none in this network namespace; say which:"
        assert [[part.strip() for part in one.split("  ") if part] for one in listed] == [
            [f"nodeseal cleanup --run-dir {lab}", "lab/node1"],
            [f"nodeseal cleanup --run-dir '{site}'", "edge"],
            ["nodeseal cleanup --all", "every node of this machine"],
        ]
        assert self.changed(everything=True) == [lab, site]
        assert self.changed(run_dir=site) == [site]

    def test_one_node_of_somebody_else_is_not_changed_either(self, tmp_path: Path) -> None:
        """Or a second `cleanup` in the place of an own node would take the neighbour's."""
        self.note(self.make(tmp_path / "site", CORE_LOCK), "edge")
        with pytest.raises(UsageError, match=r"^a node is on this machine, and none in this network namespace"):
            self.changed()

    def test_node_of_the_standard_directory_is_not_changed_from_elsewhere(self, tmp_path: Path) -> None:
        default = self.make(tmp_path / "default", CORE_LOCK)
        assert self.changed() == [default]
        self.note(default, "node1")
        with pytest.raises(UsageError):
            self.changed()

    def test_two_nodes_in_one_network_namespace_have_to_be_told_apart(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            self.note(self.make(tmp_path / name, CORE_LOCK), name, registry.own_namespace())
        with pytest.raises(UsageError, match=r"^2 nodes are in this network namespace; say which:\n"):
            self.changed()

    def test_many_nodes_are_not_all_listed(self, tmp_path: Path) -> None:
        for number in range(20):
            self.note(self.make(tmp_path / f"run{number}", CORE_LOCK), f"node{number}")
        with pytest.raises(UsageError) as caught:
            self.changed()
        _line, *listed = str(caught.value).splitlines()
        assert len(listed) == 10
        assert [line.split("  ")[-1].strip() for line in listed[-2:]] == ["names 12 more", "every node of this machine"]

    @pytest.mark.parametrize("command", ["cleanup", "upgrade-core"])
    def test_refusal_is_a_line_and_a_list_and_a_wrong_use(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        for number in range(2):
            self.note(self.make(tmp_path / f"run{number}", CORE_LOCK), f"node{number}")
        assert main([command]) == 2
        out = capsys.readouterr()
        line, *listed = out.err.splitlines()
        assert (out.out, line) == (
            "",
            "nodeseal: 2 nodes are on this machine, and none in this network namespace; say which:",
        )
        assert [one.split("  ")[1] for one in listed[:2]] == [
            f"nodeseal {command} --run-dir {tmp_path / name}" for name in ("run0", "run1")
        ]

    def test_without_any_node_the_standard_directory_is_meant(self, tmp_path: Path) -> None:
        assert self.changed() == [tmp_path / "default"]
        assert self.changed(everything=True) == [tmp_path / "default"]

    def test_start_of_an_agent_is_told_with_its_own_configuration(self, tmp_path: Path) -> None:
        site = self.note(self.make(tmp_path / "site"), "edge")
        with pytest.raises(AgentGone, match=f"start it with 'nodeseal agent --config {site}/agent.yaml'$"):
            ask(site, STATUS_OPERATION)

    def test_note_is_of_a_directory_however_it_is_spelled(self, tmp_path: Path) -> None:
        site = self.note(self.make(tmp_path / "site", CORE_LOCK), "edge")
        (tmp_path / "link").symlink_to(site)
        assert registry.note_of(tmp_path / "link") == registry.note_of(site) is not None
        registry.forget(tmp_path / "link")
        assert registry.registered() == []
        assert not (tmp_path / "nodes").exists()

    def test_nodes_of_several_labs_are_told_apart(
        self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for lab in ("demo", "lab"):
            self.make(tmp_path / "labs" / lab / "node1", "agent.yaml")
            agents.append(FakeAgent(tmp_path / "labs" / lab / "node1", STATUS))
        assert main(["status"]) == 0
        out = capsys.readouterr().out
        assert "node demo/node1:" in out
        assert "node lab/node1:" in out

    def test_nodes_of_one_name_are_told_apart_wherever_they_are(
        self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for site, node in (("north", "node1"), ("south", "node1"), ("west", "edge")):
            self.note(self.make(tmp_path / site / "run"), node)
            agents.append(FakeAgent(tmp_path / site / "run", {**STATUS, "node": node}))
        assert main(["status", "-o", "json"]) == 0
        shown = [node["node"] for node in json.loads(capsys.readouterr().out)["nodes"]]
        assert shown == ["north/node1", "south/node1", "edge"]

    def test_notes_of_nodes_that_are_no_more_do_not_pile_up(self, tmp_path: Path) -> None:
        for number in range(3):
            self.note(tmp_path / f"gone{number}", "node1")
        site = self.note(self.make(tmp_path / "site", CORE_LOCK), "edge")
        assert [json.loads(path.read_text())["run_dir"] for path in (tmp_path / "nodes").iterdir()] == [str(site)]

    def test_one_silent_node_does_not_hide_the_others(
        self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
    ) -> None:
        lab = tmp_path / "labs" / "lab"
        self.make(lab / "node1", "agent.yaml", CORE_LOCK)
        self.make(lab / "node2", "agent.yaml")
        agents.append(FakeAgent(lab / "node2", {**STATUS, "node": "node2"}))
        assert main(["status"]) == 1
        out = capsys.readouterr()
        assert "node node2" in out.out
        assert f"no agent runs for {lab / 'node1'}" in out.err


class TestUpgradeCore:
    ANSWER: ClassVar = {
        "ok": True,
        "node": "node1",
        "pid": 12,
        "generation": 2,
        "version": "0.1.0",
        "workloads": 3,
        "before": {"pid": 11, "generation": 1, "version": "0.1.0"},
    }

    def test_says_what_has_taken_over_from_what(
        self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
    ) -> None:
        agents.append(FakeAgent(tmp_path, self.ANSWER))
        assert main(["upgrade-core", "--run-dir", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert out == (
            "node node1: core 0.1.0, generation 2 (pid 12) has 3 workloads;\n"
            "generation 1 (pid 11) finishes its connections\n"
        )

    def test_json_is_the_answer(
        self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]
    ) -> None:
        agents.append(FakeAgent(tmp_path, self.ANSWER))
        assert main(["upgrade-core", "--run-dir", str(tmp_path), "-o", "json"]) == 0
        (node,) = json.loads(capsys.readouterr().out)["nodes"]
        assert (node["pid"], node["before"]["pid"]) == (12, 11)

    def test_failure_is_told(self, tmp_path: Path, agents: list[FakeAgent], capsys: pytest.CaptureFixture[str]) -> None:
        agents.append(FakeAgent(tmp_path, {"status": 500, "detail": "the core did not start: no memory"}, status=500))
        assert main(["upgrade-core", "--run-dir", str(tmp_path)]) == 1
        assert "no memory" in capsys.readouterr().err


class TestCleanup:
    def run(self, monkeypatch: pytest.MonkeyPatch, report: Report, *arguments: str) -> int:
        monkeypatch.setattr("nodeseal.daemon.cleanup.cleanup", lambda _directory: report)
        return main(["cleanup", "--run-dir", "/run/none", *arguments])

    def test_says_what_was_removed(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, Report(["core, pid 3"], [])) == 0
        assert capsys.readouterr().out == "removed core, pid 3\n"

    def test_nothing_to_remove(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, Report()) == 0
        assert capsys.readouterr().out == "nothing to remove\n"

    def test_failures_are_listed(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, Report(["a"], ["b stays"]), "-o", "json") == 1
        out = capsys.readouterr()
        assert json.loads(out.out) == {"removed": ["a"], "failed": ["b stays"]}
        assert out.err == "nodeseal: b stays\n"

    def test_needs_root(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert main(["cleanup", "--run-dir", str(tmp_path)]) == 1
        assert capsys.readouterr().err == "nodeseal: cleanup needs root's privileges: run it as root\n"


def test_ca_init_makes_a_ca(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ca", "init", str(tmp_path / "ca"), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["trust_domain"] == "example.org"
    assert (tmp_path / "ca" / "intermediate.key").stat().st_mode & 0o777 == 0o600


def test_ca_init_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ca", "init", str(tmp_path / "ca")])
    capsys.readouterr()
    assert main(["ca", "init", str(tmp_path / "ca")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("nodeseal: ")
    assert err.count("\n") == 1


def test_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    out = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m nodeseal version -o json | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert out.stderr == ""
