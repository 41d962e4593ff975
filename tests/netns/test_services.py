"""A service with two endpoints, one of which is dead: no connection is lost, and few wait for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from nodeseal_lab.plan import NAMESPACE
from support.connection import Address, echoes
from support.lab import RunningLab, running_lab
from support.netfilter import rule
from support.patience import wait_for
from support.programs import Programs

PORT = 9000
SERVICES = {"enrolled": ("10.77.200.50", ("blue", "green")), "plain": ("10.77.200.51", ("red", "grey"))}
MANY = 30
SLOW = 0.8
"""Seconds: so long takes no connection that meets only what is alive, and any that tries what is dead."""
LOST = 12.0
"""Seconds, three times what one may take at most."""


@pytest.fixture
def lab(lab_root: Path) -> Iterator[RunningLab]:
    pods = ("blue:node2", "green:node2", "red:node2:plain", "grey:node2:plain")
    with running_lab(lab_root, more_pods=pods) as lab:
        epoch = lab.status("node1")["mesh"]["epoch"]
        services = [
            {
                "name": name,
                "namespace": NAMESPACE,
                "address": address,
                "ports": [{"port": PORT, "target_port": PORT}],
                "endpoints": list(endpoints),
            }
            for name, (address, endpoints) in SERVICES.items()
        ]
        (lab.lab.mesh / "pairs.yaml").write_text(yaml.safe_dump({"services": services}))
        wait_for(lambda: lab.status("node1")["mesh"]["epoch"] > epoch, "node1 knows the services")
        yield lab


def serve(programs: Programs, service: str) -> Address:
    """An echo server behind both endpoints; the service's address."""
    address, endpoints = SERVICES[service]
    for endpoint in endpoints:
        programs.serve(endpoint, port=PORT)
    return address, PORT


def dead(lab: RunningLab, service: str) -> contextlib.AbstractContextManager[None]:
    """One of the endpoints takes nothing any more, and says nothing."""
    netns = lab.lab.plan.pod(SERVICES[service][1][0]).netns
    return rule(netns, "type filter hook input priority -600", "drop")


def seconds_to(programs: Programs, address: Address) -> float:
    """Of one connection, with one exchange."""
    began = time.monotonic()
    connection = programs.dial("shipper", address, timeout=LOST)
    assert echoes(connection)
    connection.close()
    return time.monotonic() - began


def slow(times: Sequence[float]) -> int:
    return sum(one >= SLOW for one in times)


@pytest.mark.parametrize(
    ("service", "used_before"),
    [
        pytest.param("enrolled", True, id="enrolled-with-tunnels"),
        pytest.param("enrolled", False, id="enrolled-without-tunnels"),
        pytest.param("plain", False, id="not-enrolled"),
    ],
)
def test_dead_endpoint_loses_no_connection(
    lab: RunningLab, programs: Programs, service: str, used_before: bool
) -> None:
    address = serve(programs, service)
    if used_before:
        for _ in range(4):
            seconds_to(programs, address)
    with dead(lab, service):
        with ThreadPoolExecutor(MANY) as pool:  # about half of them find out
            list(pool.map(lambda _: seconds_to(programs, address), range(MANY)))
        times = [seconds_to(programs, address) for _ in range(MANY)]
    assert slow(times) <= MANY / 4


def test_endpoint_that_refuses_loses_no_connection(lab: RunningLab, programs: Programs) -> None:
    address, (_, alive) = SERVICES["enrolled"]
    programs.serve(alive, port=PORT)
    times = [seconds_to(programs, (address, PORT)) for _ in range(MANY)]
    assert slow(times) == 0


def test_all_endpoints_refuse(lab: RunningLab, programs: Programs) -> None:
    for address, _ in SERVICES.values():
        with pytest.raises(ConnectionRefusedError):
            programs.dial("shipper", (address, PORT))
