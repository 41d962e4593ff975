"""docs/rotate-your-trust-anchor.md with nodes that are held at its stages: each has a copy of the mesh directory.

tests/cext/test_rotation.c has the handshakes between every two stages, also between those that the page does not
permit. Here nodes run at every two that it does, and dial both ways.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from nodeseal.mesh.trust_anchor import TrustAnchor
from nodeseal_lab.files import write_atomically
from support.anchors import make_ca, renewed_root, root_of
from support.connection import Address, echoes, endpoint
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs
from support.publications import issuer, trusts

NODES = ("node1", "node2")
WAYS = (("shipper", "pipeline"), ("pipeline", "shipper"))
PODS = ("shipper", "pipeline")
UNTRUSTED = "peer certificate is of a CA that is not trusted here"


class Stage(IntEnum):
    """Of a node."""

    BEFORE = 0
    TRUSTS_BOTH = 1
    ISSUES_NEW = 2
    AFTER = 3


WALK = (
    (Stage.BEFORE, Stage.BEFORE),
    (Stage.TRUSTS_BOTH, Stage.BEFORE),
    (Stage.TRUSTS_BOTH, Stage.TRUSTS_BOTH),
    (Stage.ISSUES_NEW, Stage.TRUSTS_BOTH),
    (Stage.ISSUES_NEW, Stage.ISSUES_NEW),
    (Stage.AFTER, Stage.ISSUES_NEW),
    (Stage.AFTER, Stage.AFTER),
)
"""All pairs that the page permits. Which node is ahead makes no difference: both dial, and both are dialled."""


class Rotation:
    """A lab whose nodes can each be brought to a stage; all connections that were ever made with `connect` go on."""

    def __init__(self, lab: RunningLab, root: Path) -> None:
        self.lab = lab
        self._old_ca, self._new_ca = lab.directory / "ca", make_ca(root / "new")
        self.old, self.new = root_of(self._old_ca).key, root_of(self._new_ca).key
        self._files = self._written_by_commands(root / "office")
        for node in NODES:
            shutil.copytree(lab.directory / "mesh", self._mesh(node), ignore=shutil.ignore_patterns("enrolled"))
            (self._mesh(node) / "enrolled").symlink_to(lab.directory / "mesh" / "enrolled")
            shutil.copytree(self._old_ca, self._ca(node))
            lab.restart_agent(node, mesh=str(self._mesh(node)), ca=str(self._ca(node)))
        wait_for(lambda: lab.enrolled(*PODS), "both pods are enrolled")

    def _mesh(self, node: str) -> Path:
        return self.lab.directory / f"mesh-{node}"

    def _ca(self, node: str) -> Path:
        return self.lab.directory / f"ca-{node}"

    def _written_by_commands(self, mesh: Path) -> dict[Stage, str]:
        """The trust.yaml of each stage that has one, as it is copied to the nodes."""
        mesh.mkdir()
        shutil.copy(self.lab.directory / "mesh" / "mesh.yaml", mesh)
        roots = [str(ca / "root.pem") for ca in (self._old_ca, self._new_ca)]
        assert self.lab.command("trust", "add", *roots, "--mesh", str(mesh)).returncode == 0
        both = (mesh / "trust.yaml").read_text()
        assert self.lab.command("trust", "remove", self.old, "--mesh", str(mesh)).returncode == 0
        after = (mesh / "trust.yaml").read_text()
        return {Stage.TRUSTS_BOTH: both, Stage.ISSUES_NEW: both, Stage.AFTER: after}

    def hold(self, node: str, stage: Stage) -> None:
        """Returns when it is there, but for the certificates that its workloads have."""
        self.trust(node, self._files.get(stage))
        ca = self._new_ca if stage >= Stage.ISSUES_NEW else self._old_ca
        for name in ("intermediate.key", "intermediate.pem", "root.pem"):
            shutil.copy(ca / name, self._ca(node))
        wait_for(lambda: self.is_at(node, stage), f"{node} is at the stage {stage.name}")

    def trust(self, node: str, text: str | None) -> None:
        """Its trust.yaml says that from now on; None: it has none."""
        file = self._mesh(node) / "trust.yaml"
        if text is not None:
            write_atomically(file, text)
        else:
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def unreadable(self, node: str) -> Iterator[None]:
        """Its mesh state is broken meanwhile, so an agent that starts has what the core knows."""
        broken = self._mesh(node) / "broken.yaml"
        broken.write_text("workloads: [")
        yield
        broken.unlink()

    def put_root(self, node: str, root: TrustAnchor) -> None:
        """It issues by this one from now on, with the intermediate that it has."""
        write_atomically(self._ca(node) / "root.pem", root.pem)

    def is_at(self, node: str, stage: Stage) -> bool:
        """For all that it publishes."""
        trusted = {self.old} if stage < Stage.AFTER else set()
        trusted |= {self.new} if stage > Stage.BEFORE else set()
        return (trusts(self.lab, node), issuer(self.lab, node)) == ({key[:32] for key in trusted}, self.issues(stage))

    def issues(self, stage: Stage) -> str:
        """The digest of the root by which a node at this stage issues."""
        return (self.new if stage >= Stage.ISSUES_NEW else self.old)[:32]

    def renewed(self) -> None:
        """Returns when both pods have another certificate than now: what dials then makes a new tunnel."""
        before = [self._serial(pod) for pod in PODS]
        wait_for(
            lambda: all(self._serial(pod) != old for pod, old in zip(PODS, before, strict=True)),
            "both pods get new certificates",
        )

    def _serial(self, pod: str) -> Any:
        return self.lab.workload(pod)["certificate"]["serial"]

    def anchor(self, node: str, connection: socket.socket) -> str | None:
        """By which root the node has verified the other end."""
        source = endpoint(connection.getsockname())
        (row,) = [row for row in self.lab.connections(node) if row["source"] == source and row["state"] == "open"]
        found: str | None = row["anchor"]
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Certificates are renewed about every four seconds."""
    with running_lab(tmp_path_factory.mktemp("stages"), settings={"certificate_lifetime": "8s"}) as lab:
        yield lab


@pytest.fixture(scope="module")
def rotation(lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> Rotation:
    return Rotation(lab, tmp_path_factory.mktemp("rotation"))


def works(programs: Programs, source: str, address: Address) -> bool:
    with contextlib.suppress(OSError):
        return echoes(programs.dial(source, address, timeout=3))
    return False


def test_nodes_at_every_two_stages_that_the_page_permits_talk(
    lab: RunningLab, rotation: Rotation, programs: Programs
) -> None:
    """By new connections both ways, and by all those that were there before. Where both are at the same stage the agent
    of one is killed and comes back, while the mesh state cannot be read, and the core of the other is replaced: both
    stay where they were."""
    servers = {target: programs.serve(target) for _source, target in WAYS}
    connections: list[socket.socket] = []
    at = dict.fromkeys(NODES, Stage.BEFORE)
    for pair in WALK:
        for node, stage in zip(NODES, pair, strict=True):
            if stage != at[node]:
                rotation.hold(node, stage)
                at[node] = stage
                assert all(map(echoes, connections))
        if pair[0] == pair[1]:
            with rotation.unreadable("node1"):
                lab.restart_agent("node1", signal.SIGKILL)
                assert rotation.is_at("node1", pair[0])
            assert lab.command("upgrade-core", "--run-dir", str(lab.run_dir("node2"))).returncode == 0
            wait_for(lambda: all(rotation.is_at(node, stage) for node, stage in at.items()), "both are where they were")
        rotation.renewed()
        for source, target in WAYS:
            connection = programs.dial(source, servers[target].address)
            assert echoes(connection)
            connections.append(connection)
            here, there = lab.node_of(source), lab.node_of(target)
            assert rotation.anchor(here, connection) == rotation.issues(at[there])
            assert rotation.anchor(there, connection) == rotation.issues(at[here])
        assert all(map(echoes, connections))
    assert len(connections) == 2 * len(WALK)
    assert [lab.refused(node) for node in NODES] == [[], []]


@pytest.mark.parametrize(
    "stages",
    [(Stage.BEFORE, Stage.ISSUES_NEW), (Stage.AFTER, Stage.TRUSTS_BOTH)],
    ids=["issued-too-early", "removed-too-early"],
)
def test_nodes_at_two_stages_that_the_page_forbids_refuse_each_other(
    lab: RunningLab, rotation: Rotation, programs: Programs, stages: tuple[Stage, Stage]
) -> None:
    """What is there already goes on."""
    servers = {target: programs.serve(target) for _source, target in WAYS}
    for node in NODES:
        rotation.hold(node, Stage.TRUSTS_BOTH)
    wait_for(lambda: works(programs, "shipper", servers["pipeline"].address), "both trust both")
    connection = programs.dial("shipper", servers["pipeline"].address)
    assert echoes(connection)
    for node, stage in zip(NODES, stages, strict=True):
        rotation.hold(node, stage)
    for source, target in WAYS:
        address = servers[target].address
        wait_for(lambda source=source, address=address: not works(programs, source, address), f"{source} is refused")
    assert lab.refused("node1", reason=UNTRUSTED, kind="handshake")
    assert echoes(connection)


def test_root_that_is_renewed_with_its_key_takes_the_place_of_the_former_one(
    lab: RunningLab, rotation: Rotation, programs: Programs
) -> None:
    """Both verify the same certificates. As soon as both are trusted the renewed one does, so the other gets out of
    use while nodes still issue by it. Last in this file."""
    server = programs.serve("pipeline")
    for stage in (Stage.TRUSTS_BOTH, Stage.BEFORE):
        for node in NODES:
            rotation.hold(node, stage)
    former, renewed = root_of(lab.directory / "ca"), renewed_root(lab.directory / "ca")
    rotation.renewed()
    before = programs.dial("shipper", server.address)
    assert echoes(before)
    assert {rotation.anchor(node, before) for node in NODES} == {former.key[:32]}
    for trusted in ([former, renewed], [renewed]):
        for node in NODES:
            rotation.trust(node, json.dumps({"trust_anchors": [{"pem": one.pem} for one in trusted]}))
        digests = {one.key[:32] for one in trusted}
        wait_for(lambda digests=digests: all(trusts(lab, node) == digests for node in NODES), "both nodes trust that")
        if former in trusted:
            rotation.renewed()
            since = programs.dial("shipper", server.address)
            assert echoes(since)
            assert {rotation.anchor(node, since) for node in NODES} == {renewed.key[:32]}
            for node in NODES:
                rotation.put_root(node, renewed)
            wait_for(lambda: all(issuer(lab, node) == renewed.key[:32] for node in NODES), "both issue by it")
    assert (echoes(before), echoes(since)) == (True, True)
    assert works(programs, "shipper", server.address)
