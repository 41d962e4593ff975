"""What the commands of `nodeseal lab` show of a lab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nodeseal.cli.output import print_json
from nodeseal.cli.table import render
from nodeseal.contracts.output import LabPod, LabPods, LabStatus

if TYPE_CHECKING:
    from nodeseal_lab.lab import Lab


def print_pods(lab: Lab, names: Sequence[str], output: str) -> None:
    """These pods."""
    pods = [pod for pod in lab.status().pods if pod.name in names]
    if output == "json":
        print_json(LabPods(pods=pods))
    else:
        print(_pods_table(pods))


def status_tables(status: LabStatus) -> str:
    """The status for a person: a table of nodes and one of pods, within 100 columns. Addresses are those that names
    stand for. Trust domains are shown if there are several."""
    several = len({node.trust_domain for node in status.nodes}) > 1
    nodes = render(
        ("NODE", "ADDRESS", "AGENT", "CORE", "NAMESPACE", *(("TRUST DOMAIN",) if several else ())),
        [
            (
                node.name,
                node.addresses[-1],
                str(node.agent_pid or "not running"),
                " ".join(str(pid) for pid in node.core_pids) or "not running",
                node.netns,
                *((node.trust_domain,) if several else ()),
            )
            for node in status.nodes
        ],
        fold=(5,) if several else (),
    )
    return f"{nodes}\n\n{_pods_table(status.pods)}"


def _pods_table(pods: Sequence[LabPod]) -> str:
    return render(
        ("POD", "NODE", "ADDRESS", "ENROLLED", "IDENTITY"),
        [
            (
                pod.name,
                pod.node,
                pod.addresses[-1],
                "yes" if pod.enrolled else "no",
                pod.identity or "-",
            )
            for pod in pods
        ],
    )
