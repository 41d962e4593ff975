"""Workloads with several addresses: those that the mesh state has, and others."""

from __future__ import annotations

from differential.case import Notice, case
from differential.notices import UNKNOWN_ADDRESS
from differential.observation import Observation, outcome
from differential.place import Place
from differential.setting import NAMED, SEVERAL_MESH, UNNAMED
from differential.world import World
from support.connection import echo, echoes


def further(place: Place, last: int) -> str:
    """Another address of the pod."""
    return f"{place.address(4).rpartition('.')[0]}.{last}"


def dialled(world: World, *, source: int = 0, target: int = 0) -> Observation:
    """A connection from and to such addresses, the pods' own where there is 0."""
    at = further(world.server, target) if target else world.server.address(4)
    served = world.serve(echo, at=at)
    client = world.new_socket()
    if source:
        client.bind((further(world.client, source), 0))
    result = outcome(lambda: client.connect((at, world.port)))
    echoed = result == "ok" and outcome(lambda: echoes(client)) == "ok"
    return {
        "connect()": result,
        "echo": echoed,
        "server sees": {peer[0] for peer in served.peers},
        "client's own address": client.getsockname()[0] if result == "ok" else "",
    }


@case(SEVERAL_MESH)
def test_bound_to_a_named_address(world: World) -> Observation:
    """A client is bound to another address of its pod, which the mesh state has."""
    return dialled(world, source=NAMED)


@case(SEVERAL_MESH)
def test_dials_a_named_address(world: World) -> Observation:
    """A client dials another address of the server, which the mesh state has."""
    return dialled(world, target=NAMED)


@case(SEVERAL_MESH)
def test_from_and_to_named_addresses(world: World) -> Observation:
    """A client is bound to another address and dials another, both of which the mesh state has."""
    return dialled(world, source=NAMED, target=NAMED)


@case(SEVERAL_MESH)
def test_bound_to_an_unnamed_address(world: World) -> Observation:
    """A client is bound to another address of its pod, which the mesh state does not have."""
    return dialled(world, source=UNNAMED)


@case(
    SEVERAL_MESH,
    notices=(
        Notice("echo", "there is no answer", UNKNOWN_ADDRESS),
        Notice("server sees", "nobody comes", UNKNOWN_ADDRESS),
    ),
)
def test_dials_an_unnamed_address(world: World) -> Observation:
    """A client dials another address of the server, which the mesh state does not have."""
    seen = dialled(world, target=UNNAMED)
    return {key: seen[key] for key in ("echo", "server sees")}
