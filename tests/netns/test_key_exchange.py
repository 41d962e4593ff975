"""Which key exchange two cores agree on, and peers that know less: by what the linked OpenSSL has.

OpenSSL 3.5 has X25519MLKEM768. Where it lacks the hybrid group, the same tests hold what is used instead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.linux import openssl
from support import s_client
from support.connection import echoes, endpoint
from support.lab import RunningLab, running_lab
from support.programs import Programs

HYBRID = "X25519MLKEM768"


def library_has_hybrid() -> bool:
    match = re.fullmatch(r"OpenSSL (\d+)\.(\d+)\.\S+", openssl.library_version())
    assert match is not None
    return (int(match[1]), int(match[2])) >= (3, 5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("exchange")) as lab:
        yield lab


def test_two_cores_agree_on_the_best_group_that_openssl_has(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    lab.outbound(client)
    group = HYBRID if library_has_hybrid() else "x25519"
    for node, direction in (("node1", "outbound"), ("node2", "inbound")):
        said = lab.command("connections", "--run-dir", str(lab.run_dir(node)), "-o", "json")
        (row,) = [
            row
            for row in json.loads(said.stdout)["connections"]
            if (row["direction"], row["source"]) == (direction, endpoint(client.getsockname()))
        ]
        assert (row["mtls"], row["group"]) == (True, group)


def test_peer_with_x25519_alone_is_talked_to(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    shown = s_client.present(lab, "shipper", tmp_path)
    said = s_client.dial(lab, programs, "pipeline", shown, "-groups", "X25519")
    assert said.taken, said.text
    assert "X25519, 253 bits" in said.text
    assert HYBRID not in said.text


def test_peer_with_the_hybrid_group_alone_is_talked_to(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    """As a ztunnel with the post-quantum policy. An OpenSSL without the group can be no such peer."""
    shown = s_client.present(lab, "shipper", tmp_path)
    said = s_client.dial(lab, programs, "pipeline", shown, "-groups", HYBRID)
    assert said.taken == library_has_hybrid(), said.text
    assert (f"Negotiated TLS1.3 group: {HYBRID}" in said.text) == library_has_hybrid(), said.text
