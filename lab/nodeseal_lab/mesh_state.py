"""The lab's mesh state directory and agent configurations: written at `up`, edited by `enrol`, `unenrol` and `mode`.

The directory is an ordinary one that a person may edit by hand as well: a change keeps every other entry of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nodeseal.mesh.address import Address
from nodeseal_lab.errors import LabError
from nodeseal_lab.files import write_atomically
from nodeseal_lab.plan import NAMESPACE, TRUST_DOMAIN, Node, Plan

WORKLOADS = "workloads.yaml"
# More than the first retransmission of a SYN (1 s), which may carry a connection over from before enrolment.
SETTLE = "1500ms"


def federated_file(trust_domain: str) -> str:
    """The file of a mesh directory that has what there is of another trust domain: without it the two are not
    federated."""
    return f"federated-{trust_domain}.yaml"


def write_mesh(
    directory: Path, plan: Plan, trust_domain: str = TRUST_DOMAIN, bundles: Mapping[str, Path] | None = None
) -> None:
    """The mesh of one trust domain of the plan: mesh.yaml (its name), workloads.yaml and services.yaml, and a file for
    each other domain. `bundles`: where the domains' bundles are."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "mesh.yaml", {"trust_domain": trust_domain})
    _write(directory / WORKLOADS, {"workloads": _workloads(plan, trust_domain)})
    _write(directory / "services.yaml", {"services": _services(plan, trust_domain)})
    for other, bundle in (bundles or {}).items():
        if other == trust_domain:
            continue
        content: dict[str, Any] = {"federated": [{"trust_domain": other, "bundle_file": str(bundle)}]}
        content["workloads"] = [{**one, "trust_domain": other} for one in _workloads(plan, other)]
        if services := _services(plan, other):
            content["services"] = services
        _write(directory / federated_file(other), content)


def write_agent_config(
    path: Path, node: Node, *, mesh: Path, ca: str | dict[str, Any], certificate_lifetime: str = ""
) -> None:
    """The configuration of one node's agent; its run directory is the one that the file is in. `ca`: the setting."""
    _write(
        path,
        {
            "node": node.name,
            "run_dir": str(path.parent),
            "mesh": str(mesh),
            "ca": ca,
            "settle": SETTLE,
            **({"certificate_lifetime": certificate_lifetime} if certificate_lifetime else {}),
        },
    )


def change_workloads(directory: Path, changes: dict[str, dict[str, Any]], file: str = WORKLOADS) -> None:
    """Sets fields of workloads, {"pipeline": {"mode": "strict"}}, in one step. Raises LabError when the file cannot
    be read or has no such workload (someone edited it)."""
    path = directory / file
    try:
        content = yaml.safe_load(path.read_text())
        entries = {entry["name"]: entry for entry in content["workloads"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        what = str(error).splitlines()[0]
        raise LabError(f"{path}: cannot read the lab's workloads ({what}); correct it by hand") from error
    for name, fields in changes.items():
        if name not in entries:
            raise LabError(f"{path}: it has no workload '{name}' any more; add it again by hand")
        entries[name].update(fields)
    _write(path, content)


def _workloads(plan: Plan, trust_domain: str) -> list[dict[str, Any]]:
    return [
        {
            "name": pod.name,
            "namespace": NAMESPACE,
            "service_account": pod.name,
            "node": pod.node,
            **_addresses(pod.addresses),
            **({"host": {"cgroup": pod.cgroup, "ports": [pod.port]}} if pod.cgroup else {"netns": pod.netns}),
            "enrolled": pod.enrolled_from_start,
            "mode": "permissive",
        }
        for pod in plan.pods
        if plan.trust_domain_of(pod.name) == trust_domain
    ]


def _services(plan: Plan, trust_domain: str) -> list[dict[str, Any]]:
    """Those whose endpoints are of the trust domain: all of a service are of one."""
    return [
        {
            "name": service.name,
            "namespace": NAMESPACE,
            **_addresses(service.addresses),
            "ports": [{"port": port, "target_port": target} for port, target in service.ports],
            "endpoints": list(service.endpoints),
        }
        for service in plan.services
        if plan.trust_domain_of(service.endpoints[0]) == trust_domain
    ]


def _addresses(addresses: Sequence[Address]) -> dict[str, Any]:
    if len(addresses) == 1:
        return {"address": str(addresses[0])}
    return {"addresses": [str(address) for address in addresses]}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, yaml.safe_dump(content, sort_keys=False))
