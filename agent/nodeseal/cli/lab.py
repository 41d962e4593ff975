"""The command line of the lab: `nodeseal lab up | exec | status | down | enrol | unenrol | mode | demo`.

Every sub-parser sets `run`, a callable that takes the parsed arguments and returns the exit status."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nodeseal.cli.progress import waiting
from nodeseal_lab.errors import LabError, LabPlanError
from nodeseal_lab.plan import DEFAULT_NAME, NAMESPACE, NODE_RULES

if TYPE_CHECKING:
    from nodeseal_lab.lab import Lab

DEMO_NAME = "demo"
USAGE_ERROR = 2
INTERRUPTED = 130


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `lab` and its sub-commands."""
    lab = subparsers.add_parser("lab", help="nodes and pods as network namespaces on this machine, to try nodeseal")
    commands = lab.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)

    up = _command(commands, "up", _up, "make a lab and leave it running")
    up.add_argument("--nodes", type=int, default=2, metavar="N", help="number of nodes (default 2)")
    up.add_argument(
        "--pod",
        action="append",
        default=[],
        dest="pods",
        metavar="NAME:NODE[:plain]",
        help="one more pod, enrolled unless plain (repeatable); it runs nothing of its own",
    )
    up.add_argument(
        "--host-workload",
        action="append",
        default=[],
        dest="host_workloads",
        metavar="NAME:NODE:PORT[:plain]",
        help="a process of the node itself, in a cgroup of its own, that serves HTTP at PORT (repeatable)",
    )
    up.add_argument(
        "--node-rules",
        default="",
        choices=NODE_RULES,
        metavar="KIND",
        help=f"netfilter rules of other programs on the nodes: {', '.join(NODE_RULES)}",
    )
    up.add_argument("--ipv6", action="store_true", help="IPv6 addresses as well; names stand for those")
    up.add_argument("--not-enrolled", action="store_true", help="start with no pod enrolled")
    up.add_argument("--unsupervised", action="store_true", help="leave an agent that ends at that")

    what = "run a command in a pod: nodeseal lab exec POD -- CMD"
    execute = _command(commands, "exec", _exec, what, output=False)  # what it prints is the command's own
    execute.add_argument("pod", metavar="POD")
    execute.add_argument("command", metavar="-- CMD", nargs=argparse.REMAINDER)

    _command(commands, "status", _status, "what runs: nodes, pods, and which pods are enrolled")
    _command(commands, "down", _down, "remove a lab, whatever is left of it")
    for name, run, what in (
        ("enrol", _enrol, "enrol pods, live"),
        ("unenrol", _unenrol, "un-enrol pods, live; open connections go on"),
    ):
        command = _command(commands, name, run, what)
        command.add_argument("pods", metavar="POD", nargs="+")
    mode = _command(commands, "mode", _mode, "whether a pod accepts plaintext from those not enrolled")
    mode.add_argument("pod", metavar="POD")
    mode.add_argument("mode", choices=("permissive", "strict"))
    demo = _command(commands, "demo", _demo, "the main job in under a minute, every claim measured", name=DEMO_NAME)
    demo.add_argument("--ipv6", action="store_true", help="all of it over IPv6")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    command: str,
    run: Callable[[argparse.Namespace], int],
    what: str,
    *,
    name: str = DEFAULT_NAME,
    output: bool = True,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(command, help=what, description=what[0].upper() + what[1:] + ".")
    _add_name(parser, name)
    if output:
        parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")
    parser.set_defaults(run=functools.partial(_reporting_errors, run))
    return parser


def _add_name(parser: argparse.ArgumentParser, name: str = DEFAULT_NAME) -> None:
    parser.add_argument("--name", default=name, metavar="NAME", help=f"the lab's name (default {name})")


def _reporting_errors(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Turns what is the user's to know into one line on standard error."""
    try:
        return run(args)
    except KeyboardInterrupt:
        print("nodeseal: interrupted", file=sys.stderr)
        return INTERRUPTED
    except LabError as error:
        if getattr(args, "output", None) == "json":
            print(json.dumps({"errors": [str(error)]}, indent=2))
        print(f"nodeseal: {error}", file=sys.stderr)
        return USAGE_ERROR if isinstance(error, LabPlanError) else 1


def _up(args: argparse.Namespace) -> int:
    from nodeseal_lab.interruption import signals_interrupt
    from nodeseal_lab.lab import Lab
    from nodeseal_lab.plan import Plan, PodRequest, in_url

    more = [PodRequest.parse(text) for text in args.pods]
    more += [PodRequest.parse_host_workload(text) for text in args.host_workloads]
    plan = Plan.build(
        args.name,
        nodes=args.nodes,
        more_pods=more,
        enrol=not args.not_enrolled,
        ipv6=args.ipv6,
        node_rules=args.node_rules,
    )
    with signals_interrupt(), waiting(f"making the lab '{args.name}'"):
        status = Lab.up(plan, supervised=not args.unsupervised).status()
    if args.output == "json":
        print(json.dumps(status, indent=2))
        return 0
    option = "" if args.name == DEFAULT_NAME else f" --name {args.name}"
    pipeline = in_url(plan.pod("pipeline").named_address)
    print(f"lab '{args.name}' is up\n\n{status_tables(status)}\n")
    print("try:")
    print(f"  nodeseal lab exec{option} shipper -- curl -sS http://{pipeline}:8080/   (or http://pipeline:8080/)")
    print("  nodeseal connections")
    print(f"  nodeseal lab down{option}")
    return 0


def _exec(args: argparse.Namespace) -> int:
    from nodeseal_lab.lab import Lab
    from nodeseal_lab.pods import exec_in_pod

    command = split_exec_arguments(args)
    if not command:
        print("nodeseal: lab exec: expected a command: nodeseal lab exec POD -- CMD...", file=sys.stderr)
        return USAGE_ERROR
    sys.stdout.flush()
    return exec_in_pod(Lab.open(args.name), args.pod, command)


def split_exec_arguments(args: argparse.Namespace) -> list[str]:
    """The command to run. Options of ours that stand between POD and `--` are taken into `args`: argparse leaves
    everything after the first positional argument to the command."""
    command: list[str] = args.command
    if command and command[0].startswith("-") and "--" in command:
        cut = command.index("--")
        if cut > 0:
            parser = argparse.ArgumentParser(prog="nodeseal lab exec")
            _add_name(parser, args.name)
            parser.parse_args(command[:cut], namespace=args)
        command = command[cut + 1 :]
    return command


def _status(args: argparse.Namespace) -> int:
    from nodeseal_lab.lab import Lab, require_root

    require_root("nodeseal lab status")
    return _print_status(Lab.open(args.name), args)


def _down(args: argparse.Namespace) -> int:
    from nodeseal_lab.lab import take_down

    with waiting(f"taking down the lab '{args.name}'"):
        report = take_down(args.name)
    if args.output == "json":
        print(
            json.dumps(
                {
                    "namespaces": list(report.namespaces),
                    "processes": list(report.processes),
                    "failures": list(report.failures),
                },
                indent=2,
            )
        )
    elif report.namespaces or report.processes:
        print(
            f"lab '{args.name}': {len(report.processes)} processes ended, {len(report.namespaces)} namespaces removed"
        )
    elif not report.failures:
        print(f"lab '{args.name}': nothing to remove")
    for failure in report.failures:
        print(f"nodeseal: {failure}", file=sys.stderr)
    return 1 if report.failures else 0


def _enrol(args: argparse.Namespace) -> int:
    from nodeseal_lab.lab import Lab

    lab = Lab.open(args.name)
    with waiting(f"enrolling {', '.join(args.pods)}"):
        lab.enrol(*args.pods)
    return _print_pods(lab, args)


def _unenrol(args: argparse.Namespace) -> int:
    from nodeseal_lab.lab import Lab

    lab = Lab.open(args.name)
    with waiting(f"un-enrolling {', '.join(args.pods)}"):
        lab.unenrol(*args.pods)
    return _print_pods(lab, args)


def _mode(args: argparse.Namespace) -> int:
    from nodeseal_lab.lab import Lab

    with waiting(f"making {args.pod} {args.mode}"):
        Lab.open(args.name).set_mode(args.pod, args.mode)
    if args.output == "json":
        print(json.dumps({"name": args.pod, "mode": args.mode}, indent=2))
    else:
        print(f"{NAMESPACE}/{args.pod} is {args.mode}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from nodeseal_lab.demo.run import run_demo

    return run_demo(args.name, as_json=args.output == "json", ipv6=args.ipv6)


def _print_status(lab: Lab, args: argparse.Namespace) -> int:
    status = lab.status()
    print(json.dumps(status, indent=2) if args.output == "json" else status_tables(status))
    return 0


def _print_pods(lab: Lab, args: argparse.Namespace) -> int:
    pods = [pod for pod in lab.status()["pods"] if pod["name"] in args.pods]
    print(json.dumps({"pods": pods}, indent=2) if args.output == "json" else _pods_table(pods))
    return 0


def status_tables(status: dict[str, Any]) -> str:
    """The status for a person: a table of nodes and one of pods, within 100 columns. Addresses are those that names
    stand for."""
    nodes = table(
        ("NODE", "ADDRESS", "AGENT", "CORE", "NAMESPACE"),
        [
            (
                node["name"],
                node["addresses"][-1],
                str(node["agent_pid"] or "not running"),
                " ".join(str(pid) for pid in node["core_pids"]) or "not running",
                node["netns"],
            )
            for node in status["nodes"]
        ],
    )
    return f"{nodes}\n\n{_pods_table(status['pods'])}"


def _pods_table(pods: Sequence[dict[str, Any]]) -> str:
    return table(
        ("POD", "NODE", "ADDRESS", "ENROLLED", "IDENTITY"),
        [
            (
                pod["name"],
                pod["node"],
                pod["addresses"][-1],
                "yes" if pod["enrolled"] else "no",
                pod["identity"] or "-",
            )
            for pod in pods
        ],
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two blanks between them."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
