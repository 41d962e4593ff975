"""The two labs, once for each process of pytest."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from differential.case import Worlds
from differential.place import Place
from differential.setting import HOST_WORKLOADS, NAMED, PODS, SEVERAL, UNNAMED
from differential.world import World
from nodeseal_lab.lab import Lab
from nodeseal_lab.mesh_state import change_workloads
from nodeseal_lab.topology import UPLINK
from support.agent import use_compiled
from support.failure_logs import pytest_runtest_makereport  # noqa: F401  (a hook)
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.pods import compiled

SYN_RETRIES = "1"
"""Of every client: what nobody answers takes some seconds, and not minutes."""


@pytest.fixture(scope="session")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningLab]]:
    """`enrolled`, with everything that is in setting.py, and `plain`, with nothing of nodeseal at all. Both have what a
    node of Kubernetes has, for the services' sake."""
    assert os.geteuid() == 0, "makes network namespaces: needs root"
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_compiled(compiled(), tmp_path_factory.mktemp("bpf") / "compiled.json"))
        made = {
            kind: stack.enter_context(
                running_lab(
                    _short(tmp_path_factory, kind),
                    more_pods=PODS,
                    host_workloads=HOST_WORKLOADS,
                    enrol=kind == "enrolled",
                    with_agents=kind == "enrolled",
                    ipv6=True,
                    node_rules="kube-proxy-nftables",
                    settings={"plaintext": "native"},
                )
            )
            for kind in ("enrolled", "plain")
        }
        for kind, lab in made.items():
            give_addresses(lab, known=kind == "enrolled")
        yield made


def give_addresses(lab: RunningLab, *, known: bool) -> None:
    """The further addresses of SEVERAL; `known`: agents are there, and learn of those that they are to know."""
    changes: dict[str, dict[str, object]] = {}
    for name in SEVERAL:
        pod = lab.lab.plan.pod(name)
        network = str(pod.address).rpartition(".")[0]
        for last in (NAMED, UNNAMED):
            add = ["ip", "-n", pod.netns, "address", "add", f"{network}.{last}/24", "dev", UPLINK]
            subprocess.run(add, check=True, timeout=20)
        changes[name] = {"addresses": [*map(str, pod.addresses), f"{network}.{NAMED}"]}
    change_workloads(lab.lab.mesh, changes)
    if known:
        for name in SEVERAL:
            wait_for(lambda name=name: len(lab.workload(name)["addresses"]) == 3, f"{name} has its addresses")  # type: ignore[misc]
        wait_for(lambda: not problems_of_addresses(lab), "both nodes know the addresses")


def problems_of_addresses(lab: RunningLab) -> list[str]:
    """What the agents say of addresses, but for those that they are not to know."""
    return [
        problem["text"]
        for node in lab.lab.plan.nodes
        for problem in lab.status(node.name)["problems"]
        if problem["word"].startswith("address-") and f".{UNNAMED}" not in problem["text"]
    ]


@pytest.fixture(scope="session")
def worlds(labs: dict[str, RunningLab]) -> Iterator[Worlds]:
    """What cases run in."""
    with contextlib.ExitStack() as stack:
        makers = []
        for kind in ("enrolled", "plain"):
            places = _Places(labs[kind].lab)
            stack.callback(places.close)
            makers.append(functools.partial(World, labs[kind].lab, places))
        yield Worlds(*makers)


@pytest.fixture(scope="session")
def enrolled(labs: dict[str, RunningLab]) -> RunningLab:
    """The enrolled lab, for tests that ask its agents and cores."""
    return labs["enrolled"]


class _Places:
    """The workloads of a lab by name, each made when it is first asked for."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._made: dict[str, Place] = {}

    def __call__(self, name: str) -> Place:
        if name not in self._made:
            place = self._made[name] = Place(self._lab, name)
            place.sysctl("ipv4/tcp_syn_retries", SYN_RETRIES)
        return self._made[name]

    def close(self) -> None:
        for place in self._made.values():
            place.close()


def _short(factory: pytest.TempPathFactory, kind: str) -> Path:
    """A directory whose name leaves room for Unix sockets."""
    return factory.mktemp(kind[0])
