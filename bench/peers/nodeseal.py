"""nodeseal itself: an agent and a core on each node, connections captured by eBPF; and ways to use it that are
measured beside it on demand (`--only`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import yaml

from bench.bed import CLIENT, SERVER, Bed
from bench.errors import BenchError
from bench.peers.peer import Peer, Started, first_line
from nodeseal.local.config import default_workers
from nodeseal_lab import agents
from nodeseal_lab.mesh_state import write_agent_config, write_mesh
from nodeseal_lab.processes import ProcessRecord

_SETTLE = "200ms"


def start_agents(bed: Bed, settings: Mapping[str, object]) -> list[ProcessRecord]:
    """An agent on each node, with the lab's configuration and these settings; the mesh state must be there. Raises
    LabError."""
    lab = bed.lab
    records = []
    for node in lab.plan.nodes:
        run_dir = lab.run_dirs[node.name]
        run_dir.mkdir()
        path = run_dir / "agent.yaml"
        write_agent_config(path, node, mesh=lab.mesh, ca=str(bed.authority))
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | dict(settings)))
        records.append(agents.start_agent(lab.processes, node, run_dir))
    agents.wait_for_agents(lab.run_dirs, records)
    return records


class Nodeseal(Peer):
    """With its defaults, but for `settle`, which is time that nobody measures. `settings` are added to the agents'
    configuration."""

    name = "nodeseal"
    enrolled: frozenset[str] = frozenset({CLIENT, SERVER})
    """Of these two pods, those that are; the others of a bed are in any case."""
    unknown: frozenset[str] = frozenset()
    """Pods that the mesh state does not have."""

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self.settings = {"workers": default_workers(), "settle": _SETTLE} | dict(settings or {})
        self.threads = int(str(self.settings["workers"]))

    def version(self) -> str:
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{version('nodeseal')} ({first_line(['openssl', 'version']).partition(' (')[0]}; {settings})"

    def start(self, bed: Bed) -> Started:
        lab = bed.lab
        left_out = {CLIENT, SERVER} - self.enrolled
        pods = tuple(
            dataclasses.replace(pod, enrolled_from_start=pod.name not in left_out)
            for pod in lab.plan.pods
            if pod.name not in self.unknown
        )
        write_mesh(lab.mesh, dataclasses.replace(lab.plan, pods=pods))
        if self.unknown:
            (lab.mesh / "services.yaml").unlink()  # nobody dials one, and they lead to pods that are unknown
        records = start_agents(bed, self.settings)
        agents.wait_for_workloads(
            lab.run_dirs,
            [pod for pod in pods if pod.enrolled_from_start],
            lambda workload: workload.phase == "enrolled",
            "enrolled",
            seconds=agents.READY_SECONDS,
            agents=records,
        )
        cores = tuple(pid for node in lab.plan.nodes for pid in agents.core_pids(lab.run_dirs[node.name]))
        if len(cores) != len(lab.plan.nodes):
            raise BenchError(
                f"{len(cores)} cores run on {len(lab.plan.nodes)} nodes; see {lab.directory}/node*/core.log"
            )
        helpers = tuple(record.pid for record in records if record.pid)
        return Started(bed.app, proxies=cores, helpers=helpers)


class NodesealEarly(Nodeseal):
    """The application's connection is accepted before the far side is there, as every other peer does."""

    name = "nodeseal-early"

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(dict(settings or {}) | {"connect": "early"})


class NodesealOutbound(Nodeseal):
    """From an enrolled workload to one that is not: decided at the SYN, and native from there on."""

    name = "nodeseal-native-out"
    enrolled = frozenset({CLIENT})
    encrypts = False


class NodesealInbound(Nodeseal):
    """From a workload that is not enrolled to one that is: the same at the other end."""

    name = "nodeseal-native-in"
    enrolled = frozenset({SERVER})
    encrypts = False


class NodesealOutside(NodesealOutbound):
    """From an enrolled workload to where nothing of the mesh is, which a map says at connect()."""

    name = "nodeseal-outside"
    unknown = frozenset({SERVER})

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(dict(settings or {}) | {"mesh_networks": ["192.0.2.0/24"]})


def parse_settings(pairs: Sequence[str]) -> dict[str, object]:
    """Settings of agents from the command line, KEY=VALUE with YAML values. Raises BenchError."""
    settings: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BenchError(f"--setting {pair}: expected KEY=VALUE, for example workers=4")
        settings[key] = yaml.safe_load(value)
    return settings
