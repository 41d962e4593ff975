"""The command: `python -m cluster`, with tests/ in PYTHONPATH."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.agent_image import IMAGE, agent_image
from cluster.cluster import Cluster, take_down
from cluster.follow import Following
from cluster.images import apps_image, name_of
from cluster.node import SERVICES
from cluster.plan import ROOT, ClusterPlan, ProxyMode
from cluster.services import Comparison
from cluster.story.mesh import Mesh
from cluster.story.story import Story
from cluster.upgrades.upgrades import Upgrades
from cluster.works import checks
from nodeseal_lab.demo.report import CheckFailed, Report
from nodeseal_lab.errors import LabError
from nodeseal_lab.interruption import signals_interrupt
from nodeseal_lab.lab import require_root


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status; that of the command which was run, for kubectl, run and exec."""
    options = _parser().parse_args(arguments)
    try:
        require_root("a cluster")
        status: int = options.action(options)
    except LabError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _up(options: argparse.Namespace) -> int:
    began = time.monotonic()
    binds = tuple(map(_absolute, options.bind))
    plan = ClusterPlan(options.name, options.nodes, ProxyMode(options.proxy), options.dual_stack, binds)
    images = [apps_image(), *options.image]
    made = time.monotonic()
    with signals_interrupt():
        cluster = Cluster.up(plan, images)
    print(
        f"cluster '{plan.name}': {len(cluster.nodes)} nodes are Ready after {time.monotonic() - made:.1f} s"
        f" (images: {made - began:.1f} s). Try: python -m cluster kubectl --name {plan.name} -- get pods -A"
    )
    return 0


def _down(options: argparse.Namespace) -> int:
    began = time.monotonic()
    take_down(options.name)
    print(f"cluster '{options.name}' is gone after {time.monotonic() - began:.1f} s")
    return 0


def _list(options: argparse.Namespace) -> int:
    for directory in sorted(ROOT.glob("*/plan.json")):
        print(directory.parent.name)
    return 0


def _kubectl(options: argparse.Namespace) -> int:
    return subprocess.call(Cluster.find(options.name).client(["kubectl", *options.words]))


def _run(options: argparse.Namespace) -> int:
    return subprocess.call(Cluster.find(options.name).client(options.words))


def _exec(options: argparse.Namespace) -> int:
    return subprocess.call(Cluster.find(options.name).node(options.node).enter(options.words or ["bash"]))


def _image(options: argparse.Namespace) -> int:
    print(agent_image())
    return 0


def _load(options: argparse.Namespace) -> int:
    Cluster.find(options.name).load(*options.archives)
    return 0


def _story(options: argparse.Namespace) -> int:
    report = Report()
    return _shown(options, report, Story(report, options.name, ProxyMode(options.proxy), options.image).run)


def _upgrades(options: argparse.Namespace) -> int:
    report = Report()
    proxy = ProxyMode(options.proxy)
    return _shown(
        options,
        report,
        Upgrades(report, options.name, proxy, options.image, options.former, options.only).run,
    )


def _shown(options: argparse.Namespace, report: Report, run: Callable[[], None]) -> int:
    began = time.monotonic()
    take_down(options.name)
    with signals_interrupt():
        try:
            run()
        except (CheckFailed, LabError, subprocess.TimeoutExpired) as error:
            report.failed(error)
            return 1
    report.finish_step()
    checks = sum(len(step.checks) for step in report.steps)
    report.say()
    report.say(f"All {checks} checks hold, in {time.monotonic() - began:.1f} s.")
    return 0


def _works(options: argparse.Namespace) -> int:
    """In a cluster of its own: the pages are followed, which ends with nodeseal installed, then the rows are tried."""
    report = Report()
    began = time.monotonic()
    take_down(options.name)
    archive = options.image or agent_image()
    image = name_of(archive)
    plan = ClusterPlan(options.name, 3, ProxyMode(options.proxy), dual_stack=True)
    with signals_interrupt():
        try:
            with Cluster.up(plan, [apps_image(), archive]) as cluster:
                mesh = Mesh(cluster, image)
                if options.part in (None, "follow"):
                    Following(report, cluster, image).run()
                else:
                    mesh.install()
                problems = []
                if options.part in (None, "services"):
                    problems += Comparison(report, cluster, mesh).run(*options.rows)
                if options.part in (None, "rows"):
                    problems += checks.run(report, checks.Works(cluster, mesh), options.rows)
                report.check("every row holds", not problems, expected="no difference", seen="; ".join(problems))
        except (CheckFailed, LabError, subprocess.TimeoutExpired) as error:
            report.failed(error)
            return 1
    report.finish_step()
    checked = sum(len(step.checks) for step in report.steps)
    report.say()
    report.say(f"All {checked} checks hold, in {time.monotonic() - began:.1f} s.")
    return 0


def _kill(options: argparse.Namespace) -> int:
    Cluster.find(options.name).node(options.node).kill()
    return 0


def _start(options: argparse.Namespace) -> int:
    cluster = Cluster.find(options.name)
    cluster.start_node(cluster.node(options.node))
    return 0


def _restart(options: argparse.Namespace) -> int:
    Cluster.find(options.name).node(options.node).restart(options.service)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster", description="A Kubernetes cluster on this machine.")
    commands = parser.add_subparsers(required=True)

    def command(name: str, action: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("--name", default="dev", help="of the cluster (default: dev)")
        one.set_defaults(action=action)
        return one

    up = command("up", _up, "Make a cluster; its nodes are Ready at the end.")
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument("--proxy", choices=list(ProxyMode), default=ProxyMode.IPTABLES, help="kube-proxy's mode")
    up.add_argument("--dual-stack", action="store_true", help="IPv6 beside IPv4")
    up.add_argument("--bind", action="append", default=[], help="a directory that every node sees, read-only")
    up.add_argument("--image", action="append", default=[], type=Path, help="a docker or OCI archive for every node")
    command("down", _down, "Remove a cluster, or what is left of one.")
    command("list", _list, "The names of the clusters that are up.")
    command("kubectl", _kubectl, "kubectl, as the administrator.").add_argument("words", nargs="*")
    command("run", _run, "A command where the API server is reached, with KUBECONFIG.").add_argument("words", nargs="+")
    inside = command("exec", _exec, "A command on a node, in all of its namespaces (default: a shell).")
    inside.add_argument("node")
    inside.add_argument("words", nargs="*")
    command("image", _image, f"Make {IMAGE} of this checkout; prints its file.")
    command("load", _load, "Give images to all nodes.").add_argument("archives", nargs="+", type=Path)
    story = command("story", _story, "What `make cluster` shows, in a cluster of its own.")
    story.add_argument("--proxy", choices=list(ProxyMode), default=ProxyMode.IPTABLES, help="kube-proxy's mode")
    story.add_argument("--image", type=Path, help="an archive of nodeseal's image (default: one of this checkout)")
    story.set_defaults(name="story")
    works = command("works", _works, "What docs/ says of a cluster, tried in one of its own.")
    works.add_argument("--proxy", choices=list(ProxyMode), default=ProxyMode.IPTABLES, help="kube-proxy's mode")
    works.add_argument("--image", type=Path, help="an archive of nodeseal's image (default: one of this checkout)")
    parts = ("follow", "services", "rows")
    works.add_argument("--part", choices=parts, help="the pages, the rows of Services, or the others (default: all)")
    works.add_argument("rows", nargs="*", help="rows by their names (default: all)")
    works.set_defaults(name="works")
    upgrades = command("upgrades", _upgrades, "What `make cluster-upgrades` shows, in a cluster of its own.")
    upgrades.add_argument("--proxy", choices=list(ProxyMode), default=ProxyMode.IPTABLES, help="kube-proxy's mode")
    upgrades.add_argument("--image", type=Path, help="an archive of nodeseal's image (default: one of this checkout)")
    upgrades.add_argument("--former", type=Path, help="one of the version before (default: of a former commit)")
    upgrades.add_argument("--only", default="", help="letters of the steps to show, beside the first and the last two")
    upgrades.set_defaults(name="upgrades")
    command("kill", _kill, "Cut a node's power.").add_argument("node")
    command("start", _start, "Turn a node on again.").add_argument("node")
    again = command("restart", _restart, "End a service of a node, and start it again.")
    again.add_argument("node")
    again.add_argument("service", choices=SERVICES)
    return parser


def _absolute(path: str) -> str:
    return str(Path(path).resolve())


if __name__ == "__main__":
    sys.exit(main())
