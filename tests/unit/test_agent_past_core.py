"""Why a connection passes by the core, as `nodeseal connections` says it: by what mesh state and node say now."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from nodeseal.api import connections_view
from nodeseal.enrolment.bypass_keeper import NO_EXTENT, BypassKeeper
from nodeseal.linux.sock_diag import Direct
from nodeseal.local.config import NodeAddresses
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.extent import Extent
from nodeseal.mesh.model import Phase
from support.agent_fakes import mesh, status_of, workload

HERE = workload("a", None, phase=Phase.ENROLLED)
PEER = workload("b", None, node="node2", phase=Phase.ENROLLED)
STRANGER, GATEWAY = IPv4Address("192.0.2.7"), IPv4Address("10.1.0.1")
PORT = Excluded(ports=(PortRange(9090, 9090),))
RANGE = Excluded(networks=(IPv4Network("192.0.2.0/24"),))
ALL = Excluded(networks=(IPv4Network("0.0.0.0/0"),))


def reason(
    remote: IPv4Address,
    *,
    inbound: bool = True,
    mark: int = 0,
    here: Exclusions = NO_EXCLUSIONS,
    peer: Exclusions = NO_EXCLUSIONS,
    extent: Extent = NO_EXTENT,
) -> str:
    """Of a connection with this other side, at port 9090."""
    keeper = BypassKeeper(status_of(), "node1", NodeAddresses(), extent)
    keeper.local = frozenset({GATEWAY})
    state = mesh(replace(HERE, exclude=here), replace(PEER, exclude=peer))
    ports = (9090, 40000) if inbound else (40000, 9090)
    direct = Direct((HERE.addresses[0], ports[0]), (remote, ports[1]), inbound, mark, 10, 20)
    row = connections_view.past_core(status_of(mesh=state, bypass=keeper), status_of(name=HERE.key), direct)
    assert (row.mtls, row.core, row.direction) == (False, None, "inbound" if inbound else "outbound")
    return str(row.reason)


@pytest.mark.parametrize("inbound", [False, True])
def test_what_nothing_explains_is_older_than_enrolment(inbound: bool) -> None:
    assert reason(STRANGER, inbound=inbound) == "opened-before-enrolment"


def test_what_the_node_opened() -> None:
    assert reason(GATEWAY) == "from-node"
    assert reason(GATEWAY, inbound=False) == "opened-before-enrolment"


def test_mark_of_the_application() -> None:
    assert reason(STRANGER, inbound=False, mark=77) == "application-mark"


def test_what_is_outside_the_mesh() -> None:
    extent = Extent((IPv4Network("10.0.0.0/8"),))
    assert reason(STRANGER, inbound=False, extent=extent) == "outside-mesh"
    assert reason(STRANGER, inbound=False, mark=77, extent=extent) == "outside-mesh"
    assert reason(STRANGER, extent=extent) == "opened-before-enrolment"
    assert reason(GATEWAY, inbound=False, extent=extent) == "opened-before-enrolment"


@pytest.mark.parametrize(("excluded", "word"), [(PORT, "excluded-port"), (RANGE, "excluded-range")])
def test_what_is_excluded(excluded: Excluded, word: str) -> None:
    assert reason(STRANGER, here=Exclusions(inbound=excluded)) == word
    assert reason(STRANGER, here=Exclusions(outbound=excluded)) == "opened-before-enrolment"
    assert reason(STRANGER, inbound=False, mark=77, here=Exclusions(outbound=excluded)) == word


def test_what_only_one_of_two_enrolled_workloads_excludes_is_no_reason() -> None:
    peer = PEER.addresses[0]
    assert isinstance(peer, IPv4Address)
    assert reason(peer, here=Exclusions(inbound=ALL)) == "opened-before-enrolment"
    assert reason(peer, here=Exclusions(inbound=ALL), peer=Exclusions(outbound=PORT)) == "excluded-range"
    assert reason(peer, inbound=False, here=Exclusions(outbound=PORT)) == "opened-before-enrolment"
    assert reason(peer, inbound=False, here=Exclusions(outbound=PORT), peer=Exclusions(inbound=ALL)) == "excluded-port"
