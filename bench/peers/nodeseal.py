"""nodeseal itself: an agent and a core on each node, both pods enrolled, connections captured by eBPF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import yaml

from bench.bed import Bed
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
        write_agent_config(path, node, mesh=lab.mesh, ca=bed.authority)
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | dict(settings)))
        records.append(agents.start_agent(lab.processes, node, run_dir))
    agents.wait_for_agents(lab.run_dirs, records)
    return records


class Nodeseal(Peer):
    """With its defaults, but for `settle`, which is time that nobody measures. `settings` are added to the agents'
    configuration."""

    name = "nodeseal"

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self.settings = {"workers": default_workers(), "settle": _SETTLE} | dict(settings or {})
        self.threads = int(str(self.settings["workers"]))

    def version(self) -> str:
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{version('nodeseal')} ({first_line(['openssl', 'version']).partition(' (')[0]}; {settings})"

    def start(self, bed: Bed) -> Started:
        lab = bed.lab
        write_mesh(lab.mesh, lab.plan)
        records = start_agents(bed, self.settings)
        agents.wait_for_workloads(
            lab.run_dirs,
            lab.plan.pods,
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


def parse_settings(pairs: Sequence[str]) -> dict[str, object]:
    """Settings of agents from the command line, KEY=VALUE with YAML values. Raises BenchError."""
    settings: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BenchError(f"--setting {pair}: expected KEY=VALUE, for example workers=4")
        settings[key] = yaml.safe_load(value)
    return settings
