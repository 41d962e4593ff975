"""Nodes with the profile `fips`, by OpenSSL's FIPS module where this machine has one; else that no such node starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.contracts.key_kind import KeyKind
from nodeseal_lab.errors import AgentError
from support import fips_module, s_client
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs

FIPS = {"profile": "fips"}
USUAL = {"profile": "default"}
GROUP = "secp256r1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Its nodes have the usual profile until a test sets them."""
    with pytest.MonkeyPatch.context() as patch:
        configuration = fips_module.configuration(tmp_path_factory.mktemp("openssl"))
        if configuration is not None:
            patch.setenv("OPENSSL_CONF", str(configuration))
        with running_lab(tmp_path_factory.mktemp("fips")) as lab:
            yield lab


def use(lab: RunningLab, node: str, profile: dict[str, str]) -> bool:
    """Gives the node the profile, agent and core; False: there is no module, and its agent has said so."""
    lab.kill_agent(node)
    lab.kill_core(node)
    if profile == FIPS and fips_module.module() is None:
        with pytest.raises(AgentError, match="profile fips cannot be had: OpenSSL's FIPS module cannot be loaded"):
            lab.start_agent(node, tls=profile)
        lab.start_agent(node, tls=USUAL)
        return False
    lab.start_agent(node, tls=profile)
    wait_for(lambda: lab.enrolled("shipper", "pipeline"), "the workloads are enrolled again")
    return True


def group_between(lab: RunningLab, programs: Programs) -> str:
    """Of the key exchange of a new connection from shipper to pipeline."""
    client = programs.dial("shipper", programs.serve("pipeline").address)
    assert echoes(client)
    row = lab.outbound(client)
    assert row["mtls"]
    assert row["tls"] == "TLSv1.3 TLS_AES_128_GCM_SHA256"
    group: str = row["group"]
    return group


def test_nodes_of_the_profile_talk_to_each_other_and_to_others(lab: RunningLab, programs: Programs) -> None:
    both = use(lab, "node1", FIPS) and use(lab, "node2", FIPS)
    assert (group_between(lab, programs) == GROUP) == both
    use(lab, "node2", USUAL)
    assert (group_between(lab, programs) == GROUP) == both


def test_check_names_the_module_and_its_version(lab: RunningLab) -> None:
    if not use(lab, "node1", FIPS):
        (lab.run_dir("node1") / "agent.yaml").write_text(
            (lab.run_dir("node1") / "agent.yaml").read_text().replace("profile: default", "profile: fips")
        )
    said = lab.command("check", "--config", str(lab.run_dir("node1") / "agent.yaml"))
    line = " ".join((said.stdout + said.stderr).split())
    if fips_module.module() is None:
        assert "OpenSSL's FIPS module cannot be loaded: " in line
    else:
        assert re.search(r"TLS by OpenSSL FIPS Provider 3\.\S+, profile fips", line), line
    use(lab, "node1", USUAL)


def test_node_of_the_profile_refuses_what_the_module_is_not_to_do(
    lab: RunningLab, programs: Programs, tmp_path: Path
) -> None:
    has_module = use(lab, "node2", FIPS)
    usual = s_client.present(lab, "shipper", tmp_path)
    ed25519 = s_client.present(lab, "shipper", tmp_path, KeyKind.ED25519)
    for shown, options, taken in (
        (usual, (), True),
        (usual, ("-groups", "P-384"), True),
        (usual, ("-groups", "X25519"), not has_module),
        (ed25519, (), not has_module),
        # No node takes it, whatever its profile.
        (usual, ("-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"), False),
    ):
        said = s_client.dial(lab, programs, "pipeline", shown, *options)
        assert said.taken == taken, (shown.name, options, said.text)
