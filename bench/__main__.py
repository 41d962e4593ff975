"""The command: `python -m bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.bed import remove_old_beds
from bench.build import BUILD, build_programs
from bench.errors import BenchError
from bench.figures import summarise
from bench.machine import describe_machine
from bench.peers.catalogue import all_peers, ways_of_nodeseal
from bench.peers.external import External, read_description
from bench.peers.nodeseal import parse_settings
from bench.peers.peer import Peer
from bench.plots import draw_plots
from bench.report import PAGE, markdown_report, terminal_report, write_page
from bench.session import Session, Settings
from nodeseal_lab.errors import LabError
from nodeseal_lab.interruption import signals_interrupt
from nodeseal_lab.lab import require_root

ROUNDS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 when something could not be measured."""
    options = _parser().parse_args(argv)
    try:
        require_root("the bench")
        peers = _choose(options)
        settings = Settings.short(options.rounds or 1) if options.quick else Settings.full(options.rounds or ROUNDS)
        session = Session(build_programs(), peers, settings, _say)
        remove_old_beds()
        try:
            with signals_interrupt():
                session.run()
        except KeyboardInterrupt:
            session.failures.append("interrupted")
            _say("interrupted: the figures are those of what was finished")
        short = options.quick or options.only or settings.rounds < ROUNDS
        complete = not (short or session.failures)
        return _publish(session, options.output, complete=complete)
    except (BenchError, LabError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures nodeseal beside its peers, in network namespaces of its own. A full run (all peers, "
        "at least 5 rounds, nothing failed) also writes the figures and plots of docs/performance.md.",
    )
    parser.add_argument("--quick", action="store_true", help="one short round, in under 3 minutes")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="rounds (default 5; 1 with --quick)")
    parser.add_argument("--only", metavar="PEERS", help="these peers alone, separated by commas")
    parser.add_argument(
        "--extra", type=Path, action="append", default=[], metavar="FILE", help="a peer from a description file"
    )
    parser.add_argument(
        "--setting", action="append", default=[], metavar="KEY=VALUE", help="for the configuration of nodeseal's agents"
    )
    parser.add_argument(
        "--output", type=Path, default=BUILD / "bench.json", metavar="FILE", help="default: %(default)s"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _choose(options: argparse.Namespace) -> list[Peer]:
    """The peers to be measured. Raises BenchError when one is unknown, or needs something first."""
    settings = parse_settings(options.setting)
    peers = all_peers(settings)
    for path in options.extra:
        peers.append(External(read_description(path, [peer.name for peer in peers])))
    if options.only:
        names = options.only.split(",")
        known = {peer.name: peer for peer in (*peers, *ways_of_nodeseal(settings))}
        for name in names:
            if name not in known:
                raise BenchError(f"--only {name}: there is no such peer; there are {', '.join(known)}")
        peers = [known[name] for name in dict.fromkeys(names)]
    missing = [f"{peer.name}: {what}" for peer in peers if (what := peer.missing())]
    if missing:
        raise BenchError(f"not everything is there ({'; '.join(missing)}), or leave peers out with --only")
    return peers


def _publish(session: Session, output: Path, *, complete: bool) -> int:
    """Writes what there is; only a complete run changes the documentation."""
    if not session.visits:
        raise BenchError("nothing was measured")
    machine = describe_machine(session.peers, session.congestion_control)
    more: dict[str, Any] = {"complete": complete} | ({"rest": session.rest} if session.rest else {})
    result = summarise(session.visits, machine, session.settings_json(), session.failures, **more)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{terminal_report(result)}\n\n{output}")
    if complete:
        plots = draw_plots(result, PAGE.with_suffix(""))
        write_page(PAGE, markdown_report(result, [(title, f"performance/{path.name}") for title, path in plots]))
        print(PAGE)
    for failure in session.failures:
        print(f"bench: {failure}", file=sys.stderr)
    return 1 if session.failures else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
