"""docs/revoke.md, followed literally: what is revoked is cut and refused at both ends, and nothing else is."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.authority.store import read_certificates
from support.connection import Address, echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs

PAGE = Path(__file__).parents[2] / "docs" / "revoke.md"
IDENTITY, LIST, UNDO_IDENTITY, SERIAL, NODE, ISSUED, UNDO_NODE = re.findall(
    r"^```\n(.+)\n```$", PAGE.read_text(), re.MULTILINE
)
NODES = ("node1", "node2")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """`shipper` and `siem` are on node1, `pipeline` is on node2."""
    with running_lab(tmp_path_factory.mktemp("revocation")) as lab:
        yield lab


@pytest.fixture(autouse=True)
def nothing_is_left(lab: RunningLab) -> Iterator[None]:
    yield
    (lab.directory / "mesh" / "revocations.json").unlink(missing_ok=True)


def shell(lab: RunningLab, line: str) -> str:
    """One of the page's commands, on node1."""
    environment = {**os.environ, "NODESEAL_RUN_DIR": str(lab.run_dir("node1"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def is_cut(connection: socket.socket) -> bool:
    """Waits for the end of a connection on which nobody sends; whether it was an abortive one."""
    try:
        return connection.recv(1) != b""
    except ConnectionResetError:
        return True


def works(programs: Programs, source: str, address: Address) -> bool:
    with contextlib.suppress(OSError):
        return echoes(programs.dial(source, address, timeout=3))
    return False


def reason(lab: RunningLab, node: str, source: str) -> str:
    """What the node says ended the connection from there."""

    def find() -> str | None:
        rows = [row for row in lab.connections(node) if row["source"] == source and row["state"] == "closed"]
        return str(rows[0]["reason"]) if rows else None

    return wait_for(find, f"{node} shows the end of the connection from {source}")


def end_of(connection: socket.socket) -> str:
    host, port = connection.getsockname()
    return f"{host}:{port}"


def serial(lab: RunningLab, pod: str) -> str:
    return str(lab.workload(pod)["certificate"]["serial"])


def words(lab: RunningLab, node: str) -> list[tuple[str, str]]:
    return [(problem["word"], problem["about"]) for problem in lab.status(node)["problems"]]


def test_identity_is_cut_refused_and_taken_back(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client, other = programs.dial("shipper", server.address), programs.dial("siem", server.address)
    assert echoes(client)
    assert echoes(other)
    source = end_of(client)

    assert "revoked identity spiffe://example.org/ns/default/sa/shipper" in shell(lab, IDENTITY)
    assert is_cut(client)
    for node in NODES:
        assert "revoked" in reason(lab, node, source)
    assert "its key leaked" in shell(lab, LIST)
    assert not works(programs, "shipper", server.address)
    assert ("identity-revoked", "default/shipper") in words(lab, "node1")
    assert any("identity was revoked" in row["reason"] for node in NODES for row in lab.refused(node))
    assert any("revoked" in line for line in (lab.run_dir("node2") / "core.log").read_text().splitlines())
    # Nobody else notices.
    assert echoes(other)
    assert works(programs, "siem", server.address)

    shell(lab, UNDO_IDENTITY)
    wait_for(lambda: works(programs, "shipper", server.address), "the identity works again")
    assert ("identity-revoked", "default/shipper") not in words(lab, "node1")
    assert echoes(other)


def test_server_that_is_revoked_is_cut_too(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("siem", server.address)
    assert echoes(client)
    shell(lab, IDENTITY.replace("sa/shipper", "sa/pipeline"))
    assert is_cut(client)
    assert not works(programs, "siem", server.address)
    shell(lab, UNDO_IDENTITY.replace("sa/shipper", "sa/pipeline"))
    wait_for(lambda: works(programs, "siem", server.address), "the identity works again")


def test_certificate_is_cut_by_its_serial_number(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client, other = programs.dial("shipper", server.address), programs.dial("siem", server.address)
    assert echoes(client)
    assert echoes(other)
    source = end_of(client)
    before = serial(lab, "shipper")
    shell(lab, SERIAL.replace("SERIAL", before))
    assert is_cut(client)
    assert all("revoked" in reason(lab, node, source) for node in NODES)
    wait_for(lambda: serial(lab, "shipper") != before, "shipper has another certificate")
    wait_for(lambda: works(programs, "shipper", server.address), "the other certificate works")
    assert echoes(other)
    shell(lab, f"{SERIAL.replace('SERIAL', before)} --undo")


def test_intermediate_is_revoked_by_its_serial_number(lab: RunningLab, programs: Programs) -> None:
    """Both nodes issue by the same one."""
    server = programs.serve("pipeline")
    client = programs.dial("siem", server.address)
    assert echoes(client)
    source = end_of(client)
    (intermediate, *_) = read_certificates(lab.directory / "ca" / "intermediate.pem")
    shell(lab, SERIAL.replace("SERIAL", f"{intermediate.serial_number:x}"))
    assert is_cut(client)
    assert all("revoked" in reason(lab, node, source) for node in NODES)
    assert not works(programs, "siem", server.address)
    shell(lab, f"{SERIAL.replace('SERIAL', f'{intermediate.serial_number:x}')} --undo")
    wait_for(lambda: works(programs, "siem", server.address), "the certificates work again")


def test_node_is_cut_with_all_that_it_has(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    clients = [programs.dial(pod, server.address) for pod in ("shipper", "siem")]
    assert all(map(echoes, clients))
    shell(lab, NODE)
    assert all(map(is_cut, clients))
    assert not works(programs, "shipper", server.address)
    shell(lab, UNDO_NODE)
    wait_for(lambda: works(programs, "shipper", server.address), "the node's workloads work again")


def test_connection_that_an_older_core_finishes_is_cut(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    for node in NODES:
        assert lab.command("upgrade-core", "--run-dir", str(lab.run_dir(node))).returncode == 0
    assert echoes(client)
    shell(lab, IDENTITY)
    assert is_cut(client)
    shell(lab, UNDO_IDENTITY)
    wait_for(lambda: works(programs, "shipper", server.address), "the identity works again")


def test_core_that_starts_knows_what_is_revoked(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    shell(lab, IDENTITY)
    wait_for(lambda: not works(programs, "shipper", server.address), "the identity is revoked")
    for node in NODES:
        lab.kill_core(node)
        wait_for(lambda node=node: lab.enrolled("siem", "pipeline"), "the next core serves")
    wait_for(lambda: works(programs, "siem", server.address), "the others go on")
    assert not works(programs, "shipper", server.address)
    shell(lab, UNDO_IDENTITY)
    wait_for(lambda: works(programs, "shipper", server.address), "the identity works again")
