"""SVIDs of SPIRE's Workload API, for registration entries that select the process which asks: first the issuer alone,
then two nodes whose agents have them for their workloads. Skipped where SPIRE is not built."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from interop.spire import Spire
from nodeseal.identity.issuer import Flaw, IssuerError, Svid
from nodeseal.identity.trust import TrustBundle
from nodeseal.identity.workload_api import WorkloadApiIssuer
from nodeseal.local.issuers import WorkloadApiCa
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal_lab.plan import TRUST_DOMAIN
from support.agent import use_compiled
from support.agent_fakes import until_flaws
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.namespaces import Namespaces
from support.patience import PATIENCE, wait_for
from support.pods import compiled
from support.programs import Programs

SHIPPER, SIEM, PIPELINE, STRANGER, LATE = (
    SpiffeId(TRUST_DOMAIN, "default", name) for name in ("shipper", "siem", "pipeline", "stranger", "late")
)
ME = f"unix:uid:{os.geteuid()}"
ANOTHER = f"unix:uid:{os.geteuid() + 1}"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "bring-your-own-ca.md"


@pytest.fixture(scope="module")
def spire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spire]:
    with Namespaces() as net, Spire(tmp_path_factory.mktemp("spire"), net.create("spire")) as spire:
        spire.ask(*command_of_the_page())
        spire.register(str(SIEM), ME)
        spire.register(str(PIPELINE), ME, ttl_s=30)
        spire.register(str(STRANGER), ANOTHER)
        yield spire


def command_of_the_page() -> list[str]:
    """What docs/bring-your-own-ca.md tells spire-server: the entry of the shipper."""
    (command,) = re.findall(r"^```sh\nspire-server (.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return shlex.split(command.replace("\\\n", ""))


@pytest.fixture(scope="module")
def lab(spire: Spire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """The lab's usual pods; the agents of both nodes ask the same SPIRE agent."""
    settings = {"ca": {"workload_api": str(spire.workload_api), "trust_domain": TRUST_DOMAIN}}
    root = tmp_path_factory.mktemp("mesh")
    with use_compiled(compiled(), root / "compiled.json"), running_lab(root, settings=settings) as lab:
        yield lab


def play(socket: Path, story: Callable[[WorkloadApiIssuer], Awaitable[None]]) -> None:
    async def whole() -> None:
        issuer = WorkloadApiIssuer(WorkloadApiCa(socket, TRUST_DOMAIN))
        try:
            async with asyncio.timeout(PATIENCE):
                await issuer.begin()
                await story(issuer)
        finally:
            await issuer.close()

    asyncio.run(whole())


async def issued(issuer: WorkloadApiIssuer, identity: SpiffeId) -> Svid:
    """What is issued once there is something: asks at each change."""
    async for _ in issuer.changes():
        try:
            return await issuer.issue(identity)
        except IssuerError:
            continue
    raise AssertionError


def test_entry_that_selects_the_agent_gives_its_svid_and_the_trust_anchors(spire: Spire) -> None:
    async def story(issuer: WorkloadApiIssuer) -> None:
        svid = await issued(issuer, SHIPPER)
        assert (svid.identity, svid.delivered) == (SHIPPER, True)
        anchors = TrustBundle.read(TRUST_DOMAIN, spire.trust_anchors())
        assert issuer.bundle.fingerprints == anchors.fingerprints == {svid.anchor}
        assert await issuer.condition() == ()

    play(spire.workload_api, story)


def test_entry_that_selects_another_gives_nothing(spire: Spire) -> None:
    async def story(issuer: WorkloadApiIssuer) -> None:
        await issued(issuer, SHIPPER)
        with pytest.raises(IssuerError, match=f"has no SVID of {STRANGER}; make a registration entry"):
            await issuer.issue(STRANGER)

    play(spire.workload_api, story)


def test_new_entry_is_streamed(spire: Spire) -> None:
    async def story(issuer: WorkloadApiIssuer) -> None:
        with pytest.raises(IssuerError):
            await issuer.issue(LATE)
        await asyncio.to_thread(spire.register, str(LATE), ME)
        assert (await issued(issuer, LATE)).identity == LATE

    play(spire.workload_api, story)


def test_rotation_is_streamed(spire: Spire) -> None:
    async def story(issuer: WorkloadApiIssuer) -> None:
        first = await issued(issuer, PIPELINE)
        async for _ in issuer.changes():
            if issuer.superseded(first):
                break
        second = await issuer.issue(PIPELINE)
        assert second.serial != first.serial
        assert second.not_after > first.not_after

    play(spire.workload_api, story)


def test_agent_that_goes_and_comes_again_is_followed(spire: Spire) -> None:
    async def story(issuer: WorkloadApiIssuer) -> None:
        first = await issued(issuer, SHIPPER)
        await asyncio.to_thread(spire.stop_agent)
        await until_flaws(issuer, Flaw.AWAY)
        assert await issuer.issue(SHIPPER) == first
        await asyncio.to_thread(spire.start_agent)
        await until_flaws(issuer)
        assert issuer.superseded(first)

    play(spire.workload_api, story)


def test_workloads_talk_with_svids_of_spire_also_after_rotation(
    lab: RunningLab, programs: Programs, spire: Spire
) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert lab.outbound(client)["mtls"]
    first = lab.workload("pipeline")["certificate"]["serial"]
    wait_for(lambda: lab.workload("pipeline")["certificate"]["serial"] != first, "it has the next certificate")
    assert echoes(client)
    again = programs.dial("shipper", server.address)
    assert echoes(again)
    assert lab.outbound(again)["mtls"]


def test_workloads_go_on_while_the_spire_agent_is_away(lab: RunningLab, programs: Programs, spire: Spire) -> None:
    spire.stop_agent()
    wait_for(lambda: words(lab, "node1") == ["ca-away"], "node1 tells of it")
    client = programs.dial("shipper", programs.serve("siem").address)
    assert echoes(client)
    assert lab.outbound(client)["mtls"]
    spire.start_agent()
    wait_for(lambda: words(lab, "node1") == [], "it is there again")


def words(lab: RunningLab, node: str) -> list[str]:
    return [problem["word"] for problem in lab.status(node)["problems"]]
