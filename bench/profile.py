"""The command: `python -m bench.profile`, where the time of the splice core goes.

Every load of the bench runs in the bench's own bed, with both cores sampled; build/profile/ gets a text for each, and
one file with the stacks of all, which speedscope (https://www.speedscope.app) shows as flame graphs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from bench.bed import CLIENT, SERVER, Bed, new_bed, remove_old_beds
from bench.build import BUILD, build_programs
from bench.errors import BenchError
from bench.generator import measure
from bench.instrumented import Instrumented, callgrind_missing
from bench.loads import LOADS, Load
from bench.machine import describe_machine
from bench.peers.catalogue import all_peers
from bench.peers.nodeseal import parse_settings
from bench.peers.peer import Peer
from bench.profile_report import Profile, cost_of, terminal_table, write_flame_graphs, write_load
from bench.sampler import FREQUENCY, Sampler, perf_missing
from bench.session import server_pid, start_peer
from nodeseal_lab.errors import LabError
from nodeseal_lab.interruption import signals_interrupt
from nodeseal_lab.lab import require_root

OUTPUT = BUILD / "profile"
USUAL_LOADS = (
    "requests_c1", "requests_c64", "connections_c32", "down_1", "up_1", "down_8", "up_8", "mix",
)  # fmt: skip
WARMUP, SECONDS_MAX = 0.5, 600.0
CALLGRIND_WARMUP = 2.0
OURS = "nodeseal"
SPEEDSCOPE = "https://www.speedscope.app (it stays in the browser)"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        require_root("the profile")
        peer = choose_peer(options.peer, options.setting)
        loads = choose_loads(options.only)
        output = options.output or (OUTPUT if peer.name == OURS else OUTPUT / peer.name)
        sample = _count if choose_callgrind(peer, asked=options.callgrind) else _sample
        remove_old_beds()
        profiles: list[Profile] = []
        try:
            with signals_interrupt():
                for profile in sample(peer, loads, options.seconds):
                    write_load(profile, output)
                    profiles.append(profile)
                    print(f"{profile.title}: {output / profile.load}.txt", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print("interrupted: what was finished is kept", file=sys.stderr)
        if not profiles:
            raise BenchError("nothing was sampled")
        print(f"\n{terminal_table(profiles)}\n\n{write_flame_graphs(profiles, output)}: open it in {SPEEDSCOPE}")
        return 0 if len(profiles) == len(loads) else 1
    except (BenchError, LabError) as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile",
        description="Writes flame graphs of the splice core under each load of the bench.",
    )
    parser.add_argument(
        "--only", metavar="LOADS", help=f"these loads alone, separated by commas (default: {','.join(USUAL_LOADS)})"
    )
    parser.add_argument("--seconds", type=_seconds, default=4.0, metavar="S", help="of each load (default: 4)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"default: {OUTPUT}, for a peer a directory of its name in it"
    )
    parser.add_argument(
        "--setting", action="append", default=[], metavar="KEY=VALUE", help="for the configuration of nodeseal's agents"
    )
    parser.add_argument(
        "--callgrind", action="store_true", help="count instructions with callgrind, as where perf cannot sample"
    )
    parser.add_argument("--peer", default=OURS, metavar="NAME", help="another peer of the bench instead of nodeseal")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 to {SECONDS_MAX:.0f}")
    return seconds


def choose_peer(name: str, settings: Sequence[str]) -> Peer:
    """The peer of this name. Raises BenchError when there is none that can be sampled, or it needs something first."""
    peers = {peer.name: peer for peer in all_peers(parse_settings(settings)) if peer.threads > 0}
    if name not in peers:
        raise BenchError(f"--peer {name}: there is no such peer; there are {', '.join(peers)}")
    if (what := peers[name].missing()) is not None:
        raise BenchError(f"{name} is not there: {what}")
    return peers[name]


def choose_loads(names: str | None) -> list[Load]:
    """The loads with these names, separated by commas; None: the usual ones. Raises BenchError."""
    known = {load.name: load for load in LOADS}
    wanted = list(dict.fromkeys(names.split(","))) if names else list(USUAL_LOADS)
    for name in wanted:
        if name not in known:
            raise BenchError(f"--only {name}: there is no such load; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def choose_callgrind(peer: Peer, *, asked: bool) -> bool:
    """Whether callgrind is to be used instead of perf. Raises BenchError when neither can be."""
    why = "callgrind was asked for" if asked else perf_missing()
    if why is None:
        return False
    if peer.name != OURS:
        raise BenchError(f"{why}; callgrind is for nodeseal alone, not for {peer.name}")
    if (missing := callgrind_missing()) is not None:
        raise BenchError(missing if asked else f"{why}; and {missing}")
    if not asked:
        print(f"{why}; instead callgrind counts instructions in user space", file=sys.stderr)
    return True


def side_namer(bed: Bed) -> Callable[[int], str]:
    """A function that tells the side on which a process is, by its network namespace: that of the pod or of its
    node."""
    plan = bed.lab.plan
    sides: dict[int, str] = {}
    for pod, side in ((CLIENT, "client side"), (SERVER, "server side")):
        node = next(node for node in plan.nodes if node.name == plan.pod(pod).node)
        for netns in (plan.pod(pod).netns, node.netns):
            sides[Path("/run/netns", netns).stat().st_ino] = side
    known: dict[int, str] = {}

    def side_of(pid: int) -> str:
        if pid not in known:
            try:
                known[pid] = sides.get(Path(f"/proc/{pid}/ns/net").stat().st_ino, "")
            except OSError:
                known[pid] = ""
        return known[pid]

    return side_of


def _sample(peer: Peer, loads: Sequence[Load], seconds: float) -> Iterator[Profile]:
    """One bed for all loads. Raises BenchError, LabError."""
    programs = build_programs()
    with tempfile.TemporaryDirectory(prefix="nodeseal-profile-") as directory, new_bed(programs) as bed:
        started = start_peer(bed, peer)
        congestion_control = bed.setting(CLIENT, "ipv4/tcp_congestion_control")
        notes = (*_machine(peer, congestion_control), f"perf, cpu-clock at {FREQUENCY} Hz and CPU; both sides")
        sampler, side_of = Sampler(Path(directory, "perf.data")), side_namer(bed)
        for load in loads:
            measured = measure(
                bed,
                started,
                load,
                server=server_pid(bed),
                warmup=WARMUP,
                seconds=seconds,
                observer=sampler.sampling(started.pids),
            )
            busy = measured.other_cpu_s / measured.seconds
            neighbours = f"{busy:.1f} CPUs were busy with something else (perf among it)"
            yield Profile(
                load.name, peer.name, cost_of(measured), sampler.fold(side_of), "samples", (*notes, neighbours)
            )


def _count(peer: Peer, loads: Sequence[Load], seconds: float) -> Iterator[Profile]:
    """The same with cores under callgrind. Raises BenchError, LabError."""
    programs = build_programs()
    with tempfile.TemporaryDirectory(prefix="nodeseal-profile-") as directory, new_bed(programs) as bed:
        instrumented, side_of = Instrumented(Path(directory)), side_namer(bed)
        with instrumented.cores():
            started = start_peer(bed, peer)
        congestion_control = bed.setting(CLIENT, "ipv4/tcp_congestion_control")
        method = "callgrind: instructions in user space only, the kernel's part is not seen; both sides"
        notes = (*_machine(peer, congestion_control), method)
        for load in loads:
            observer = instrumented.counting(started.proxies)
            server = server_pid(bed)
            measure(bed, started, load, server=server, warmup=CALLGRIND_WARMUP, seconds=seconds, observer=observer)
            folded = instrumented.fold(started.proxies, side_of)
            yield Profile(load.name, peer.name, "user space only", folded, "instructions", notes)


def _machine(peer: Peer, congestion_control: str) -> tuple[str, str]:
    machine = describe_machine([peer], congestion_control)
    when = datetime.fromisoformat(machine["date"]).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{machine['cpus']} x {machine['cpu']}, Linux {machine['kernel']}, {machine['distribution']}, "
        f"TCP {congestion_control}",
        f"{when}, commit {machine['commit']}, {machine['versions'][peer.name]}",
    )


if __name__ == "__main__":
    sys.exit(main())
