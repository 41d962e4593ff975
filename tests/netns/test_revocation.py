"""What a core was told to be revoked, with a node at each end: cut on both, which say why, and taken again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodeseal.cores.client import CoreClient
from nodeseal.mesh import revoked
from nodeseal.mesh.spiffe import SpiffeId
from support.connection import echoes
from support.core_client import ask
from support.lab import RunningLab
from support.patience import wait_for
from support.programs import Programs

SHIPPER = SpiffeId("example.org", "default", "shipper")
HERE = "peer's identity was revoked"
THERE = "peer refused this workload's certificate: it was revoked"


@pytest.fixture
def revoking(lab: RunningLab) -> Iterator[str]:
    """The node that hears of revocations; in the end nothing is revoked there."""
    node = lab.node_of("pipeline")
    yield node
    assert ask(lab.run_dir(node), CoreClient.revocations, [], whole=True) == 0


def why_refused(lab: RunningLab, node: str, direction: str) -> list[str]:
    return [row["reason"] for row in lab.refused(node, direction=direction, kind="handshake")]


def test_revoked_identity_is_cut_and_refused_until_it_is_restored(
    lab: RunningLab, programs: Programs, revoking: str
) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    digest = revoked.of_identity(SHIPPER)
    assert ask(lab.run_dir(revoking), CoreClient.revocations, [digest], whole=False) == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    dialling = lab.node_of("shipper")
    wait_for(lambda: HERE in why_refused(lab, revoking, "inbound"), "the node that refuses says why")
    wait_for(lambda: THERE in why_refused(lab, dialling, "outbound"), "the node that was refused says why")
    (row,) = (row for row in lab.refused(dialling, direction="outbound") if row["reason"] == THERE)
    assert row["presented"] == str(SHIPPER)
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        programs.dial("shipper", server.address).recv(1)
    assert ask(lab.run_dir(revoking), CoreClient.revocations, [], [digest], whole=False) == 0
    again = programs.dial("shipper", server.address)
    assert echoes(again)
    shown = lab.outbound(again)
    assert shown["group"] in ("x25519", "X25519MLKEM768")
    assert shown["signature"] == "ecdsa_secp256r1_sha256"


def test_revoking_others_leaves_connections_alone(lab: RunningLab, programs: Programs, revoking: str) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    others = [revoked.of_serial("example.org", number) for number in range(20_000)]
    assert ask(lab.run_dir(revoking), CoreClient.revocations, others, whole=True) == len(others)
    assert echoes(client)
