"""docs/rotate-your-trust-anchor.md, followed literally under 500 live connections: none is cut, and new ones work at
every stage, also while the two nodes are at different ones."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.anchors import make_ca, root_of
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.long_lived import LongLived
from support.patience import wait_for
from support.programs import Programs
from support.publications import issuer, trusts

PAGE = Path(__file__).parents[2] / "docs" / "rotate-your-trust-anchor.md"
CONNECTIONS = 500
PAIRS = (("shipper", "pipeline"), ("pipeline", "shipper"), ("siem", "shipper"))
NODES = ("node1", "node2")
THEIR_CA = "/etc/nodeseal/ca"

MAKE, ADD, STATUS, ISSUE, REMOVE = re.findall(r"^```\n(.+)\n```$", PAGE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Each node has a copy of the CA. Certificates are renewed about every four seconds."""
    settings = {"certificate_lifetime": "8s"}
    with running_lab(tmp_path_factory.mktemp("rotation"), settings=settings) as lab:
        for node in NODES:
            shutil.copytree(lab.directory / "ca", ca_of(lab, node))
            lab.restart_agent(node, ca=str(ca_of(lab, node)))
        wait_for(lambda: lab.enrolled("shipper", "pipeline", "siem"), "everything is enrolled")
        yield lab


def ca_of(lab: RunningLab, node: str) -> Path:
    return lab.directory / f"ca-{node}"


class Newcomers:
    """Connections that come and go between the nodes, both ways, all the time."""

    def __init__(self, programs: Programs) -> None:
        self.counts = dict.fromkeys(PAIRS[:2], 0)
        self._stop = threading.Event()
        programs.at_end(self._stop.set)
        self._threads = [programs.thread(lambda pair=pair: self._run(programs, pair)) for pair in self.counts]

    def _run(self, programs: Programs, pair: tuple[str, str]) -> None:
        server = programs.serve(pair[1])
        while not self._stop.wait(0.02):
            connection = programs.dial(pair[0], server.address)
            assert echoes(connection)
            connection.close()
            self.counts[pair] += 1

    def go_on(self) -> None:
        """Each way has new ones that worked, from here on."""
        before = dict(self.counts)
        wait_for(
            lambda: self.failed or all(self.counts[pair] >= count + 3 for pair, count in before.items()),
            "new connections work both ways",
        )
        if self.failed:
            self.end()

    @property
    def failed(self) -> bool:
        return not all(thread.running for thread in self._threads)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.result()


class Shell:
    """The page's commands on one node of the lab."""

    def __init__(self, lab: RunningLab, directory: Path) -> None:
        self._lab = lab
        self._directory = directory

    def __call__(self, line: str, node: str = "node1") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "NODESEAL_RUN_DIR": str(self._lab.run_dir(node))}
        bin_directory = Path(sys.executable).parent
        environment["PATH"] = f"{bin_directory}:{environment['PATH']}"
        line = line.replace(THEIR_CA, str(ca_of(self._lab, node)))
        return subprocess.run(["sh", "-c", line], cwd=self._directory, env=environment, capture_output=True, text=True)

    def does(self, line: str, node: str = "node1") -> str:
        done = self(line, node)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout


def serial(lab: RunningLab, pod: str) -> str:
    found: str = lab.workload(pod)["certificate"]["serial"]
    return found


def wait_for_renewal(lab: RunningLab, *pods: str) -> None:
    for pod, old in [(pod, serial(lab, pod)) for pod in pods]:
        wait_for(lambda pod=pod, old=old: serial(lab, pod) != old, f"{pod} gets a new certificate")


def test_rotation_cuts_nothing_at_any_stage(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    shell, newcomers = Shell(lab, tmp_path), Newcomers(programs)
    old = root_of(ca_of(lab, "node1")).key
    with LongLived(lab.lab, PAIRS, CONNECTIONS) as connections:
        connections.wait_open()
        shell.does(MAKE)
        new = root_of(tmp_path / "new").key
        shell.does(ADD)
        wait_for(lambda: shell(STATUS).returncode == 0, "every node has both roots")

        # Stage by stage on one node before the other; what the other does not know yet it need not know.
        shell.does(ISSUE, "node1")
        wait_for(lambda: issuer(lab, "node1") == new[:32], "node1 issues by the new root")
        wait_for_renewal(lab, "shipper")
        newcomers.go_on()
        refused = shell(REMOVE.replace("OLD", old[:16]))
        assert refused.returncode == 1
        assert "node2: issues by it" in refused.stderr
        shell.does(ISSUE, "node2")
        wait_for(lambda: issuer(lab, "node2") == new[:32], "node2 issues by the new root")
        wait_for_renewal(lab, "pipeline", "siem")
        newcomers.go_on()

        # What was opened before all this keeps the old root. What was opened since does not.
        wait_for(lambda: only_connections_need(shell, old), "live connections alone need the old root")
        with open_connection(programs, "siem", "shipper") as young:
            total = connections.finish()
            assert (total.opened, total.cut, total.wrong, total.incidents) == (CONNECTIONS, 0, 0, 0)
            assert total.sent == total.received
            wait_for(lambda: shell(REMOVE.replace("OLD", old[:16])).returncode == 0, "nobody needs the old root")
            for node in NODES:
                wait_for(lambda node=node: trusts(lab, node) == {new[:32]}, f"{node} trusts the new root only")
            wait_for_renewal(lab, "shipper", "pipeline")
            newcomers.go_on()
            newcomers.end()
            assert echoes(young)
    assert [lab.refused(node) for node in NODES] == [[], []]


def test_forced_removal_cuts_just_what_the_root_verified(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    """One connection is older than the new certificates, the other is not; both lead to the same workload."""
    shell = Shell(lab, tmp_path)
    old = root_of(ca_of(lab, "node1")).key
    shell.does(MAKE)
    new = root_of(tmp_path / "new").key
    shell.does(f"nodeseal trust add {THEIR_CA}/root.pem new/root.pem")
    wait_for(lambda: shell(STATUS).returncode == 0, "every node has both roots")
    with open_connection(programs, "shipper", "pipeline") as before:
        shell.does(ISSUE, "node1")
        shell.does(ISSUE, "node2")
        wait_for(lambda: all(issuer(lab, node) == new[:32] for node in NODES), "both nodes issue by the new root")
        wait_for_renewal(lab, "shipper", "pipeline", "siem")
        with open_connection(programs, "siem", "pipeline") as since:
            wait_for(lambda: anchors_of(lab, before) == {old[:32]}, "the first one was verified by the old root")
            assert anchors_of(lab, since) == {new[:32]}
            wait_for(lambda: only_connections_need(shell, old, *NODES), "a live connection alone needs the old root")
            refused = shell(REMOVE.replace("OLD", old[:16])).stderr
            assert "node1, node2: has up to 1 connection by it" in refused
            assert (echoes(before), echoes(since)) == (True, True)

            shell.does(REMOVE.replace("remove OLD", f"remove --force {old[:16]}"))
            assert is_cut(before)
            reasons = {reason_of(lab, node, before) for node in NODES}
            assert "the trust anchor that the peer was verified by was removed" in reasons
            assert echoes(since)
            for node in NODES:
                wait_for(lambda node=node: trusts(lab, node) == {new[:32]}, f"{node} trusts the new root only")
            assert echoes(since)
    with open_connection(programs, "shipper", "pipeline"):
        pass  # a new one, by the new root
    assert f"anchor  {old}" in shell.does("nodeseal revoke list")


def test_node_whose_agent_is_away_cuts_when_it_comes_back(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    """Its core goes on meanwhile, with what it verified by the root that is removed by force."""
    shell = Shell(lab, tmp_path)
    old = root_of(ca_of(lab, "node1")).key
    shell.does(MAKE)
    new = root_of(tmp_path / "new").key
    shell.does(f"nodeseal trust add {THEIR_CA}/root.pem new/root.pem")
    wait_for(lambda: shell(STATUS).returncode == 0, "every node has both roots")
    with contextlib.ExitStack() as stack:
        by_both = stack.enter_context(open_connection(programs, "siem", "pipeline"))
        # node2 shows certificates of the new root, and node1 does not yet: node2 alone verifies by the old one.
        shell.does(ISSUE, "node2")
        wait_for(lambda: issuer(lab, "node2") == new[:32], "node2 issues by the new root")
        wait_for_renewal(lab, "pipeline")
        wait_for_renewal(lab, "shipper")
        by_node2 = stack.enter_context(open_connection(programs, "shipper", "pipeline"))
        assert [rows_of(lab, node, by_node2)[0]["anchor"] for node in NODES] == [new[:32], old[:32]]
        shell.does(ISSUE, "node1")
        wait_for(lambda: issuer(lab, "node1") == new[:32], "node1 issues by the new root")
        wait_for_renewal(lab, "shipper", "pipeline")
        by_none = stack.enter_context(open_connection(programs, "shipper", "pipeline"))
        assert anchors_of(lab, by_none) == {new[:32]}

        lab.kill_agent("node2")
        shell.does(REMOVE.replace("remove OLD", f"remove --force {old[:16]}"))
        assert is_cut(by_both)  # by node1
        wait_for(lambda: trusts(lab, "node1") == {new[:32]}, "node1 trusts the new root only")
        assert (echoes(by_node2), echoes(by_none)) == (True, True)
        status = shell(STATUS)
        assert status.returncode == 1
        assert f"node2: still trusts the root {old[:16]}" in status.stdout

        lab.start_agent("node2")
        assert is_cut(by_node2)
        assert reason_of(lab, "node2", by_node2) == "the trust anchor that the peer was verified by was removed"
        wait_for(lambda: shell(STATUS).returncode == 0, "node2 trusts the new root only")
        assert echoes(by_none)


def test_node_that_does_not_follow_yet_goes_on_talking(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    """The agent of one node stands still while anchors come and go: its core is a stage behind."""
    shell, newcomers = Shell(lab, tmp_path), Newcomers(programs)
    present = root_of(ca_of(lab, "node1")).key
    shell.does(MAKE)
    held = lab.agent_pid("node2")
    os.kill(held, signal.SIGSTOP)
    programs.at_end(lambda: os.kill(held, signal.SIGCONT))
    shell.does(ADD)
    wait_for(lambda: len(trusts(lab, "node1")) == 2, "node1 has both roots")
    newcomers.go_on()
    assert "1 of 2, not node2" in shell(STATUS).stdout
    os.kill(held, signal.SIGCONT)
    wait_for(lambda: shell(STATUS).returncode == 0, "every node has both roots")
    for node in NODES:
        shell.does(ISSUE, node)
    wait_for(lambda: all(issuer(lab, node) != present[:32] for node in NODES), "both nodes issue by the new root")
    wait_for(
        lambda: "nobody" in shell(f"{STATUS} | grep {present[:16]}").stdout, "no node needs the root that was there"
    )
    os.kill(held, signal.SIGSTOP)
    shell.does(REMOVE.replace("OLD", present[:16]))
    wait_for(lambda: len(trusts(lab, "node1")) == 1, "node1 has the new root only")
    newcomers.go_on()
    os.kill(held, signal.SIGCONT)
    wait_for(lambda: len(trusts(lab, "node2")) == 1, "node2 has the new root only")
    newcomers.go_on()
    newcomers.end()


def test_mesh_whose_roots_have_all_expired_gets_a_new_one(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    """As the page says; last in this file: what the nodes had before is gone."""
    shell = Shell(lab, tmp_path)
    soon = timedelta(seconds=12)
    short = make_ca(tmp_path / "short", root_lifetime=soon, intermediate_lifetime=soon)
    shell.does(f"nodeseal trust add {THEIR_CA}/root.pem {short}/root.pem")
    for node in NODES:
        shell.does(ISSUE.replace("new/", f"{short}/"), node)
    wait_for(lambda: all(issuer(lab, node) == root_of(short).key[:32] for node in NODES), "both nodes issue by it")
    server = programs.serve("pipeline")

    def works() -> bool:
        with contextlib.suppress(OSError):
            return echoes(programs.dial("shipper", server.address, timeout=2))
        return False

    wait_for(lambda: "ca-expired" in words(lab, "node1"), "the roots have expired")
    # The tunnel that there is goes on, and with it whatever comes through it.
    assert all(lab.workload(pod)["certificate"]["remaining_seconds"] < 0 for pod in ("shipper", "pipeline"))
    lab.kill_core("node1")
    shell.does(MAKE)
    shell.does("nodeseal trust add --force new/root.pem")
    for node in NODES:
        shell.does(ISSUE, node)
    wait_for(works, "new connections work again")
    assert lab.outbound(programs.dial("shipper", server.address))["mtls"]


def words(lab: RunningLab, node: str) -> list[str]:
    return [problem["word"] for problem in lab.status(node)["problems"]]


@contextlib.contextmanager
def open_connection(programs: Programs, source: str, destination: str) -> Iterator[socket.socket]:
    connection = programs.dial(source, programs.serve(destination).address)
    assert echoes(connection)
    with connection:
        yield connection


def is_cut(connection: socket.socket) -> bool:
    """Waits for the end of a connection on which nobody sends; whether it was an abortive one."""
    try:
        return connection.recv(1) != b""
    except ConnectionResetError:
        return True


def only_connections_need(shell: Shell, root: str, *nodes: str) -> bool:
    """A root, for all that the nodes say; of each of `nodes`."""
    found = json.loads(shell(f"{STATUS} -o json").stdout)
    told = [node for anchor in found["anchors"] if anchor["sha256"] == root for node in anchor["nodes"]]
    by_connections = {node["node"] for node in told if node["needs"] == "has connections by it"}
    others = {node["needs"] for node in told} - {"has connections by it", None}
    return by_connections >= set(nodes) and bool(by_connections) and not others


def rows_of(lab: RunningLab, node: str, connection: socket.socket) -> list[dict[str, Any]]:
    host, port = connection.getsockname()
    return [row for row in lab.connections(node) if row["source"] == f"{host}:{port}"]


def anchors_of(lab: RunningLab, connection: socket.socket) -> set[str | None]:
    """By which roots the two ends have verified each other."""
    return {row["anchor"] for node in NODES for row in rows_of(lab, node, connection)}


def reason_of(lab: RunningLab, node: str, connection: socket.socket) -> str:
    """What the node says ended it."""

    def find() -> str | None:
        return next((str(row["reason"]) for row in rows_of(lab, node, connection) if row["state"] == "closed"), None)

    return wait_for(find, f"{node} shows the end of the connection")
