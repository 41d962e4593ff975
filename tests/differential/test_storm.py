"""Very many connections: none is reset, none is lost, and those that are given up leave nothing.

`make storm` runs it with 200,000 connections and 100,000 that are abandoned; the suite with fewer.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from differential.case import Worlds, case
from differential.observation import Observation
from differential.setting import MESH, PODS_ONLY, Setting
from differential.world import World
from support.lab import RunningLab
from support.patience import PATIENCE

CONNECTIONS = int(os.environ.get("NODESEAL_TEST_STORM", "5000"))
ABANDONED = CONNECTIONS // 2 if CONNECTIONS > 10_000 else CONNECTIONS
SECONDS = 900.0
SPARE = 12
"""Descriptors that a core may have more for other reasons: a tunnel made anew, a pipe that is kept."""
STORM = (sys.executable, "-s", "-E", str(Path(__file__).with_name("storm.py")))
NODES = ("node1", "node2")


@case(*PODS_ONLY)
def test_storm(world: World) -> Observation:
    """Thousands of connections are dialled from two processors at once; each sends as soon as it is connected."""
    ports = [str(world.port), *map(str, world.more_ports)]
    world.program(world.server, *STORM, "serve", world.target[0], *ports, ready=int(ports[-1]))
    cpus = sorted(os.sched_getaffinity(0))[:2] * 2
    share = str(CONNECTIONS // len(cpus))

    def dial(cpu: int) -> Counter[str]:
        done = world.client.command(*STORM, "dial", world.target[0], share, str(cpu), *ports, seconds=SECONDS)
        assert done.returncode == 0, done.stderr
        return Counter(json.loads(done.stdout))

    with ThreadPoolExecutor(len(cpus)) as threads:
        return dict(sum(threads.map(dial, cpus), Counter()))


def test_abandoned_connections_leave_nothing(worlds: Worlds, enrolled: RunningLab) -> None:
    """Of thousands of connections that applications give up while they wait, neither core keeps anything; what is
    dialled after them is answered at once."""
    worlds.run(abandon, Setting(MESH, 4))
    before = held(enrolled)
    seen, _ = worlds.run(abandon, Setting(MESH, 4))
    assert seen == {"EINPROGRESS": ABANDONED, "then": "ECONNREFUSED"}
    grown: dict[str, int] = {}

    def nothing_is_left() -> bool:
        grown.clear()
        grown.update({name: count - before[name] for name, count in held(enrolled).items() if count > before[name]})
        return all(count <= SPARE for count in grown.values())

    deadline = time.monotonic() + PATIENCE
    while not nothing_is_left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not {name: count for name, count in grown.items() if count > SPARE}


def abandon(world: World) -> Observation:
    world.filter(world.server.plan.netns, "input", f"tcp dport {world.port} drop")
    done = world.client.command(*STORM, "abandon", world.target[0], str(ABANDONED), str(world.port), seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    client = world.new_socket()
    closed = client.connect_ex((world.target[0], world.more_ports[0]))
    counts: dict[str, int] = json.loads(done.stdout)
    return counts | {"then": errno.errorcode[closed]}


def held(lab: RunningLab) -> dict[str, int]:
    """What the cores of both nodes hold."""
    found = {}
    for node in NODES:
        stats = lab.core_stats(node)
        found[f"{node}: descriptors"] = stats.descriptors
        found[f"{node}: connections"] = stats.live_connections
        found[f"{node}: open files"] = len(list(Path(f"/proc/{lab.core_pid(node)}/fd").iterdir()))
    return found
