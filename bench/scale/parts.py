"""The measurements."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.accounting import read_usage
from bench.generator import running
from bench.histogram import Histogram
from bench.loads import Load
from bench.peers.peer import Started
from bench.scale.probes import DecisionProbe, LineWatch, LoopProbe
from bench.scale.scene import Reading, Scene, Side, read_peak_mb, read_side, reset_peak
from bench.scale.state import FAR_FILE, far_publications, far_state
from nodeseal_lab.files import write_atomically

Say = Callable[[str], None]

_APPLY_SECONDS = 120.0
_LOAD = Load("beside", keepalive=8, rate=400, churn=1)
_LASTING_SECONDS = 3.0
_QUIET_S = 0.1
"""CPU seconds within one second."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a run is. `seconds`: how long what is at rest is watched, and what is changed at the least."""

    workloads: int = 200
    connections: int = 10_000
    tunnels: int = 2_000
    mesh: int = 50_000
    enrol: int = 100
    seconds: float = 5.0

    @property
    def servers(self) -> int:
        """Pods on the second node, so that clients times servers make the tunnels."""
        return max(1, self.tunnels // self.workloads)


def measure_enrolment(scene: Scene, sizes: Sizes) -> dict[str, Any]:
    """`sizes.enrol` workloads of node 1 enrolled at once, and un-enrolled again."""
    names = {pod.name for pod in scene.clients[: sizes.enrol]}
    result: dict[str, Any] = {"workloads": len(names)}
    for step, wanted in (("enrol", names), ("unenrol", set[str]())):
        before = read_side(scene.near)
        watch = LineWatch(scene.near.log)
        with LoopProbe(scene.near.run_dir) as probe:
            began = scene.want(wanted)
            scene.wait_enrolled(wanted)
        last = watch.last("is enrolled" if wanted else "is no longer enrolled", len(names))
        step_result: dict[str, Any] = {**_spent(scene.near, before, last - began, per=len(names))}
        result[step] = step_result
        step_result["loop_wait_ms"] = probe.waits().to_json()
        result[step]["agent_pss_mb"] = read_side(scene.near).agent_memory.pss_mb
        result[step]["agent_pss_before_mb"] = before.agent_memory.pss_mb
    return result


def measure_rest(scene: Scene, sizes: Sizes, say: Say) -> dict[str, Any]:
    """Everything enrolled, without and with connections; leaves them open."""
    everyone = {pod.name for pod in scene.bed.lab.plan.pods}
    result: dict[str, Any] = {"nothing_enrolled": _at_rest(scene, sizes.seconds)}
    began = scene.want(everyone)
    scene.wait_enrolled(everyone)
    say(f"  {len(everyone)} workloads enrolled in {time.time() - began:.1f} s")
    scene.start_servers()
    result["enrolled"] = _at_rest(scene, sizes.seconds)
    began = time.time()
    scene.open_connections(sizes.connections)
    say(f"  {sizes.connections} connections opened in {time.time() - began:.1f} s")
    result["connected"] = _at_rest(scene, sizes.seconds)
    result["connected"]["connections"] = len(scene.connections)
    result["connected"]["tunnels"] = {side.node: scene.tunnels(side) for side in (scene.near, scene.far)}
    return result


def measure_mesh(scene: Scene, sizes: Sizes, say: Say) -> dict[str, Any]:
    """A large mesh state arrives; then one workload changes; then one publication."""
    result: dict[str, Any] = {"workloads": sizes.mesh}
    pods = len(scene.bed.lab.plan.pods)
    all_of_it = f"{sizes.mesh + pods} workloads"
    publications = scene.mesh / "enrolled"
    for name, content in far_publications(sizes.mesh):
        write_atomically(publications / name, content.decode())
    _wait_quiet(scene)  # they concern nobody yet; what reading them costs is not part of the first change
    texts = {name: content.decode() for name, content in _states(sizes.mesh)}
    result["file_mb"] = len(texts["all"]) / 1e6
    changed = next(iter(far_publications(sizes.mesh, without=0)))
    sides = (scene.near, scene.far)
    before = {side.node: read_side(side) for side in sides}
    with _beside(scene, sizes.seconds) as felt:
        result["at_rest"] = felt
    # What answering the probe costs the agent, to be taken from the cost of a change.
    load = {side.node: _spent(side, before[side.node], 0.0) for side in sides}
    result["load"] = load

    steps: Mapping[str, tuple[str, Callable[[], None]]] = {
        "apply": (all_of_it, lambda: write_atomically(scene.mesh / FAR_FILE, texts["all"])),
        "one_workload": (all_of_it, lambda: write_atomically(scene.mesh / FAR_FILE, texts["one"])),
        "one_publication": (
            all_of_it,
            lambda: write_atomically(publications / changed[0], changed[1].decode()),
        ),
    }
    for step, (line, change) in steps.items():
        say(f"  {step}")
        result[step] = _measure_change(scene, sizes, line, change, load)
    result["lost_connections"] = scene.lost()
    return result


def _states(count: int) -> Iterator[tuple[str, bytes]]:
    yield "all", far_state(count)
    yield "one", far_state(count, strict=count // 2)


def _measure_change(
    scene: Scene, sizes: Sizes, line: str, change: Callable[[], None], load: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    sides = (scene.near, scene.far)
    for side in sides:
        for pid in (side.agent, side.core):
            reset_peak(pid)
    before = {side.node: read_side(side) for side in sides}
    watches = {side.node: LineWatch(side.core_log) for side in sides}
    with _beside(scene, sizes.seconds) as felt:
        began = time.time()
        change()
        written = time.time()
        taken = {side.node: watches[side.node].wait(line, _APPLY_SECONDS) - written for side in sides}
    spent = {side.node: _spent(side, before[side.node], taken[side.node]) for side in sides}
    result: dict[str, Any] = {"write_s": written - began, "felt": felt}
    time.sleep(_LASTING_SECONDS)
    _wait_quiet(scene)
    for side in sides:
        start = before[side.node]
        one = spent[side.node]
        one["agent_cpu_s"] = max(0.0, one["agent_cpu_s"] - load[side.node]["agent_cpu_s"])
        result[side.node] = one | {
            "agent_pss_mb": read_side(side).agent_memory.pss_mb,
            "core_pss_mb": read_side(side).core_memory.pss_mb,
            "agent_pss_before_mb": start.agent_memory.pss_mb,
            "core_pss_before_mb": start.core_memory.pss_mb,
            "agent_peak_mb": read_peak_mb(side.agent),
            "core_peak_mb": read_peak_mb(side.core),
        }
    return result


def _wait_quiet(scene: Scene) -> None:
    """Waits until the agents have nothing to do, for a minute at most."""
    pids = [scene.near.agent, scene.far.agent]
    for _ in range(60):
        before = read_usage(pids)
        time.sleep(1.0)
        if (read_usage(pids) - before).total_s < _QUIET_S:
            return


@contextlib.contextmanager
def _beside(scene: Scene, seconds: float) -> Iterator[dict[str, Any]]:
    """Runs requests on open connections, new connections, new decisions and questions to the API of node 1's agent, for
    `seconds`. Gives a dict that is filled at the end of the block: {"requests_ms", "connections_ms", "decisions_ms",
    "loop_wait_ms"}, each with p50, p99 and the longest."""
    target = Started(scene.bed.app)
    first_port = _Ports.take()
    with running(scene.bed, target, _LOAD, warmup=0.3, seconds=seconds) as generator:
        with LoopProbe(scene.near.run_dir) as loop, DecisionProbe(scene.bed, first_port) as decisions:
            generator.say()
            felt: dict[str, Any] = {}
            yield felt
            generator.expect("done", seconds + 60.0)
        measured = generator.read_result()
    _Ports.give_back(decisions.next_port)
    felt |= {
        "requests_ms": _latencies(measured["requests"]),
        "connections_ms": _latencies(measured["connections"]),
        "decisions_ms": decisions.waits().to_json(),
        "loop_wait_ms": loop.waits().to_json(),
    }


class _Ports:
    """Each decision probe of a run goes on where the one before ended."""

    _next = 20_000

    @classmethod
    def take(cls) -> int:
        return cls._next

    @classmethod
    def give_back(cls, first: int) -> None:
        cls._next = first


def _latencies(counted: Mapping[str, Any]) -> dict[str, Any]:
    histogram = Histogram(counted["buckets"])
    return {
        "count": counted["count"],
        "errors": counted["errors"],
        "p50": histogram.percentile(0.5),
        "p99": histogram.percentile(0.99),
        "longest": histogram.percentile(1.0),
    }


def _at_rest(scene: Scene, seconds: float) -> dict[str, Any]:
    """Memory and CPU of each process while nothing happens."""
    time.sleep(1.0)
    before = {side.node: read_side(side) for side in (scene.near, scene.far)}
    time.sleep(seconds)
    result: dict[str, Any] = {}
    for side in (scene.near, scene.far):
        now, start = read_side(side), before[side.node]
        result[side.node] = {
            "agent_pss_mb": now.agent_memory.pss_mb,
            "core_pss_mb": now.core_memory.pss_mb,
            "agent_cpu_ms_per_s": (now.agent - start.agent).total_s * 1000 / seconds,
            "core_cpu_ms_per_s": (now.core - start.core).total_s * 1000 / seconds,
        }
    return result


def _spent(side: Side, before: Reading, seconds: float, *, per: int = 0) -> dict[str, float]:
    now = read_side(side)
    agent_s, core_s = (now.agent - before.agent).total_s, (now.core - before.core).total_s
    result = {"seconds": seconds, "agent_cpu_s": agent_s, "core_cpu_s": core_s}
    result["core_main_cpu_s"] = now.core_main_s - before.core_main_s
    if per:
        result |= {"agent_cpu_ms_each": agent_s * 1000 / per, "core_cpu_ms_each": core_s * 1000 / per}
    return result
