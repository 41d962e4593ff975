"""A lab that runs: its directory, its processes, and what can be done with it.

```
/run/nodeseal-lab/NAME/lab.json      the plan, written before anything is made
                      processes/     a record per process (see processes.py)
                      hosts          what /etc/hosts says inside `lab exec`
                      ca/ mesh/      the certificate authority and the mesh state directory, shared by the nodes; with
                                     several trust domains also domains/ and bundles/, see trust_domains.py
                      nodeN/         the run directory of node N's agent, with agent.yaml and agent.log
                      pods/POD/      the logs of the programs in a pod
                      supervisor.log what was started again (see supervisor.py)
                      ca.yaml ca.log the certificate service, if there is one, and ca-state/, what it keeps
```
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nodeseal.contracts.api import STATUS
from nodeseal.contracts.output import LabNode, LabPod, LabStatus
from nodeseal.contracts.status import WorkloadRow
from nodeseal_lab import agents, trust_domains
from nodeseal_lab.cgroups import in_cgroup, make_cgroups, remove_cgroups
from nodeseal_lab.errors import (
    AgentError,
    InsidePodError,
    LabBusyError,
    LabError,
    LabExistsError,
    MissingToolError,
    NoLabError,
    NotRootError,
)
from nodeseal_lab.files import write_atomically
from nodeseal_lab.mesh_state import change_workloads, federated_file, write_agent_config
from nodeseal_lab.namespaces import list_namespaces, run_in
from nodeseal_lab.node_rules import put_rules
from nodeseal_lab.plan import (
    PIPELINE_HTTP_PORT,
    PIPELINE_LINES_PORT,
    SIEM_HTTP_PORT,
    TRUST_DOMAIN,
    Plan,
    check_lab_name,
    in_url,
    prefix,
)
from nodeseal_lab.processes import MARKER, ProcessRecord, ProcessTable, child_environment
from nodeseal_lab.topology import (
    make_topology,
    netns_directory_is_mounted,
    remove_netns_directory,
    remove_topology,
)

LAB_ROOT = Path("/run/nodeseal-lab")
APPS = Path(__file__).parent / "apps"

SUPERVISOR = "supervisor"
"""The role of the supervisor's record."""

# Stands in the root for "the lab made /run/netns": the last lab to go takes it away again.
_NETNS_DIR_MADE = "netns-directory-made"


@dataclass(frozen=True, slots=True)
class DownReport:
    """What `down` did: the namespaces and processes that are gone, and a line for each thing that could not be
    removed."""

    namespaces: tuple[str, ...]
    processes: tuple[str, ...]
    failures: tuple[str, ...]


class Lab:
    """A lab that is up, or was brought up at least partly. Make one with `Lab.up` or `Lab.open`."""

    def __init__(self, plan: Plan, root: Path = LAB_ROOT) -> None:
        self.plan = plan
        self.directory = root / plan.name
        self.processes = ProcessTable(self.directory / "processes")

    @classmethod
    def open(cls, name: str, root: Path = LAB_ROOT) -> Lab:
        """Raises NoLabError, or LabError when its state cannot be read."""
        check_lab_name(name)
        path = root / name / "lab.json"
        try:
            return cls(Plan.from_json(json.loads(path.read_text())["plan"]), root)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoLabError(name) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LabError(
                f"{path}: cannot read the lab's state ({error}); remove the lab with: nodeseal lab down --name {name}"
            ) from error

    @classmethod
    def up(
        cls,
        plan: Plan,
        *,
        with_agents: bool = True,
        with_apps: bool = True,
        supervised: bool = True,
        root: Path = LAB_ROOT,
    ) -> Lab:
        """Makes everything in the plan and waits until the programs answer and the pods to be enrolled are.

        Raises LabError; by then everything is taken down again. `with_agents` False makes the network and programs
        only; `supervised` False leaves an agent that ends at that."""
        require_root("nodeseal lab up")
        _require_outside("nodeseal lab up")
        lab = cls(plan, root)
        lab._refuse_if_up()
        lab._make_directory(root)
        try:
            with _locked(lab.directory, plan.name):
                lab._write_state()
                lab._make(with_agents=with_agents, with_apps=with_apps)
                if with_agents and supervised:
                    lab.start_supervisor()
        except BaseException:
            take_down(plan.name, root)
            raise
        return lab

    @property
    def mesh(self) -> Path:
        """The mesh directory of the lab's own trust domain."""
        return self.mesh_of(TRUST_DOMAIN)

    def mesh_of(self, trust_domain: str) -> Path:
        """The mesh directory of a trust domain of the lab."""
        return trust_domains.mesh_of(self.directory, trust_domain)

    @property
    def run_dirs(self) -> dict[str, Path]:
        """The run directory of each node's agent, by the node's name."""
        return {node.name: self.directory / node.name for node in self.plan.nodes}

    def pod_directory(self, pod: str) -> Path:
        """Where the programs of a pod keep their logs."""
        return self.directory / "pods" / pod

    def enrol(self, *pods: str) -> None:
        """Marks the pods as wanted and waits until each is enrolled. Raises LabError."""
        self._change(pods, {"enrolled": True})
        self._wait(pods, lambda workload: workload.phase == "enrolled", "enrolled")

    def unenrol(self, *pods: str) -> None:
        """Marks the pods as not wanted and waits until their new connections go direct. Raises LabError.

        Connections that were captured live on, and until they end the pod is still `leaving`."""
        self._change(pods, {"enrolled": False})
        self._wait(pods, _goes_direct, "un-enrolled")

    def set_mode(self, pod: str, mode: str) -> None:
        """`permissive` or `strict`; waits until the pod's core decides by it. Raises LabError."""
        run_dir = self.run_dirs[self.plan.pod(pod).node]
        self._wait((pod,), lambda _workload: True, "known")
        before = agents.ask_agent(run_dir, STATUS)
        was = agents.workloads(before)[pod].mode
        self._change((pod,), {"mode": mode})
        self._wait((pod,), lambda workload: workload.mode == mode, f"in mode {mode}")
        if was != mode:
            # The agent shows the mode when it has read it; the epoch moves on when the core has it.
            agents.wait_for_epoch(run_dir, before.mesh.epoch + 1)

    def run(self, pod: str, argv: Sequence[str], *, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Runs a command in the pod's network namespace and returns its output. Addresses only: pod names resolve in
        `lab exec`. Raises subprocess.TimeoutExpired, LabError."""
        where = self.plan.pod(pod)
        if shutil.which(argv[0]) is None:
            raise MissingToolError([argv[0]])
        command = in_cgroup(where.cgroup, argv)
        return run_in(
            where.netns,
            lambda: subprocess.run(
                list(command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env=child_environment(),
            ),
        )

    def start_app(self, pod: str, program: str, *arguments: str, output: str | None = None) -> ProcessRecord:
        """Starts one of the programs in `apps/` in the pod; what it prints goes to pods/POD/OUTPUT (default
        PROGRAM.log)."""
        directory = self.pod_directory(pod)
        directory.mkdir(parents=True, exist_ok=True)
        # -s -E: whatever this command's environment says, the program is plain Python.
        argv = [sys.executable, "-s", "-E", str(APPS / f"{program}.py"), *arguments]
        log = directory / (output or f"{program}.log")
        where = self.plan.pod(pod)
        command = in_cgroup(where.cgroup, argv)
        return self.processes.start(f"app {pod}", command, netns=where.netns, output=log)

    def start_supervisor(self) -> ProcessRecord:
        """Starts what starts agents again when they end; the lab must have none that runs."""
        argv = [sys.executable, "-m", "nodeseal_lab.supervisor", str(self.directory)]
        return self.processes.start(SUPERVISOR, argv, netns=self.plan.fabric, output=self.directory / "supervisor.log")

    def supervisor_pid(self) -> int | None:
        """The supervisor, or None when it does not run."""
        running = [record.pid for record in self.processes.records() if record.role == SUPERVISOR and record.alive]
        return running[0] if running else None

    def status(self) -> LabStatus:
        """What really runs."""
        workloads = {name: self._workloads(run_dir) for name, run_dir in self.run_dirs.items()}
        nodes = [
            LabNode(
                name=node.name,
                netns=node.netns,
                address=str(node.address),
                addresses=[str(address) for address in node.addresses],
                agent_pid=agents.agent_pid(self.run_dirs[node.name]),
                core_pids=agents.core_pids(self.run_dirs[node.name]),
                trust_domain=node.trust_domain,
            )
            for node in self.plan.nodes
        ]
        pods = []
        for pod in self.plan.pods:
            workload = workloads[pod.node].get(pod.name, WorkloadRow())
            pods.append(
                LabPod(
                    name=pod.name,
                    node=pod.node,
                    netns=pod.netns,
                    address=str(pod.address),
                    addresses=[str(address) for address in pod.addresses],
                    enrolled=workload.enrolled,
                    identity=workload.identity if workload.enrolled else None,
                )
            )
        return LabStatus(nodes=nodes, pods=pods, supervisor_pid=self.supervisor_pid())

    def _refuse_if_up(self) -> None:
        name = self.plan.name
        advice = f"see `nodeseal lab status --name {name}`, or remove it with `nodeseal lab down --name {name}`"
        if self.directory.exists():
            raise LabExistsError(f"a lab named '{name}' is up already: {advice}")
        if left := list_namespaces(prefix(name)):
            raise LabExistsError(
                f"{len(left)} network namespaces of a lab named '{name}' are left ({left[0]}, ...): {advice}"
            )

    def _make_directory(self, root: Path) -> None:
        while True:
            root.mkdir(parents=True, exist_ok=True)
            # Otherwise the last of the other labs went at this moment, and the root with it.
            with contextlib.suppress(FileNotFoundError):
                if not netns_directory_is_mounted():
                    (root / _NETNS_DIR_MADE).touch()
                self.directory.mkdir()
                return

    def _write_state(self) -> None:
        state = {"format": 1, "plan": self.plan.to_json(), "made": datetime.now(UTC).isoformat(timespec="seconds")}
        write_atomically(self.directory / "lab.json", json.dumps(state, indent=2) + "\n")

    def _make(self, *, with_agents: bool, with_apps: bool) -> None:
        make_topology(self.plan)
        if self.plan.node_rules:
            for node in self.plan.nodes:
                put_rules(self.plan, node)
        make_cgroups(self.plan)
        write_atomically(self.directory / "hosts", self.plan.hosts_file())
        trust_domains.write_meshes(self.directory, self.plan)
        started = self._start_agents() if with_agents else []
        if with_apps:
            self._start_apps()
        if with_agents:
            agents.wait_for_agents(self.run_dirs, started)
            agents.wait_for_workloads(
                self.run_dirs,
                [pod for pod in self.plan.pods if pod.enrolled_from_start],
                lambda workload: workload.phase == "enrolled",
                "enrolled",
                seconds=agents.READY_SECONDS,
                agents=started,
            )
        if with_apps:
            self._wait_for_apps()

    def _start_agents(self) -> list[ProcessRecord]:
        trust_domains.make_authorities(self.directory, self.plan)
        for run_dir in self.run_dirs.values():
            run_dir.mkdir(mode=0o700)
        settings: dict[str, Any] = {
            node.name: str(trust_domains.ca_of(self.directory, node.trust_domain)) for node in self.plan.nodes
        }
        if self.plan.issuer == "service":
            from nodeseal_lab import certificate_service

            ca = trust_domains.ca_of(self.directory, TRUST_DOMAIN)
            settings |= certificate_service.prepare(self.directory, self.plan, ca, self.mesh)
            certificate_service.start(self.directory, self.plan, self.processes)
        records = []
        for node in self.plan.nodes:
            run_dir = self.run_dirs[node.name]
            write_agent_config(
                run_dir / "agent.yaml",
                node,
                mesh=self.mesh_of(node.trust_domain),
                ca=settings[node.name],
                certificate_lifetime=self.plan.certificate_lifetime,
            )
            records.append(agents.start_agent(self.processes, node, run_dir))
        return records

    def _start_apps(self) -> None:
        siem, pipeline = self.plan.pod("siem"), self.plan.pod("pipeline")
        store, access = self.pod_directory("siem") / "store.log", self.pod_directory("siem") / "access.log"
        bind = "::" if self.plan.ipv6 else "0.0.0.0"
        self.start_app(
            "siem",
            "siem",
            *("--address", bind, "--port", str(SIEM_HTTP_PORT)),
            *("--access-log", str(access), "--store", str(store)),
        )
        self.start_app(
            "pipeline",
            "pipeline",
            *("--address", bind, "--port", str(PIPELINE_HTTP_PORT), "--lines-port", str(PIPELINE_LINES_PORT)),
            *("--siem", f"{in_url(siem.named_address)}:{SIEM_HTTP_PORT}"),
            *("--access-log", str(self.pod_directory(pipeline.name) / "access.log")),
        )
        for workload in self.plan.pods:
            if workload.cgroup:
                logs = self.pod_directory(workload.name)
                self.start_app(
                    workload.name,
                    "siem",
                    *("--address", bind, "--port", str(workload.port)),
                    *("--access-log", str(logs / "access.log"), "--store", str(logs / "store.log")),
                )

    def _wait_for_apps(self) -> None:
        """Each program, asked from within its own pod: connections to the own address never leave the pod."""
        programs = [("siem", "siem", SIEM_HTTP_PORT), ("pipeline", "pipeline", PIPELINE_HTTP_PORT)]
        programs += [(workload.name, "siem", workload.port) for workload in self.plan.pods if workload.cgroup]
        for pod, program, port in programs:
            log = self.pod_directory(pod) / f"{program}.log"
            agents.wait_for_listener(self.plan.pod(pod), port, log)

    def _change(self, pods: Sequence[str], fields: dict[str, Any]) -> None:
        require_root("changing a lab")
        by_domain: dict[str, dict[str, dict[str, Any]]] = {}
        for pod in pods:
            by_domain.setdefault(self.plan.trust_domain_of(pod), {})[pod] = fields
        with _locked(self.directory, self.plan.name):
            for domain, changes in by_domain.items():
                change_workloads(self.mesh_of(domain), changes)
                for other in self.plan.trust_domains:
                    # Without the file somebody has un-federated the two.
                    if other != domain and (self.mesh_of(other) / federated_file(domain)).exists():
                        change_workloads(self.mesh_of(other), changes, federated_file(domain))

    def _wait(self, pods: Sequence[str], holds: agents.Condition, what: str) -> None:
        agents.wait_for_workloads(self.run_dirs, [self.plan.pod(pod) for pod in pods], holds, what)

    def _workloads(self, run_dir: Path) -> dict[str, WorkloadRow]:
        with contextlib.suppress(AgentError):
            return agents.workloads_of(run_dir)
        return self._published(run_dir.name)

    def _published(self, node: str) -> dict[str, WorkloadRow]:
        """What a node's agent last published as enrolled: still so while the agent is away and its core works on."""
        from nodeseal.sources.directory.source import load
        from nodeseal.sources.source import MeshStateError

        with contextlib.suppress(MeshStateError):
            mesh = load(self.mesh_of(self.plan.node(node).trust_domain))
            return {
                key.name: WorkloadRow(
                    enrolled=workload.accepts_tunnels, identity=str(workload.identity(mesh.trust_domain))
                )
                for key, workload in mesh.workloads.items()
                if workload.node == node
            }
        return {}


def _goes_direct(workload: WorkloadRow) -> bool:
    """Whether nothing new of a workload that is not wanted is captured: at most what was captured before goes on."""
    return workload.phase == "absent" or workload.draining


def take_down(name: str, root: Path = LAB_ROOT) -> DownReport:
    """Removes everything of the lab `name`, whatever is left of it, and does nothing when nothing is.

    Raises NotRootError, LabPlanError, LabBusyError. What could not be removed is in the report; the lab's directory
    then stays, so that another `down` can try again."""
    require_root("nodeseal lab down")
    _require_outside("nodeseal lab down")
    check_lab_name(name)
    directory = root / name
    failures: list[str] = []
    ended: list[str] = []
    with _locked(directory, name) if directory.is_dir() else contextlib.nullcontext():
        table = ProcessTable(directory / "processes")
        # First, and alone: what it starts until it has ended has a record, and is ended with the rest.
        supervisors = [record for record in table.records() if record.role == SUPERVISOR]
        stuck = table.end(supervisors)
        ended = [record.role for record in supervisors if record not in stuck]
        records = list(table.records())
        run_dirs = sorted(path.parent for path in directory.glob("*/agent.yaml"))
        records += agents.restarted_agents(run_dirs, records)
        stuck = table.end(records)
        ended += [record.role for record in records if record not in stuck]
        failures += [f"process {record.pid} ({record.role}) does not end" for record in stuck]
        failures += agents.cleanup_nodes(run_dirs)
        try:
            remove_cgroups(name)
        except LabError as error:
            failures.append(str(error))
        namespaces = remove_topology(name)
        if not failures:
            shutil.rmtree(directory, ignore_errors=True)
            if directory.exists():
                failures.append(f"cannot remove {directory}")
    if root.is_dir() and not any(path.is_dir() for path in root.iterdir()):
        _remove_root(root)
    return DownReport(tuple(namespaces), tuple(ended), tuple(failures))


def _remove_root(root: Path) -> None:
    """After the last lab; one that comes up meanwhile keeps it."""
    mark = root / _NETNS_DIR_MADE
    if made := mark.exists():
        remove_netns_directory()
    mark.unlink(missing_ok=True)
    try:
        root.rmdir()
    except OSError:
        if made and root.is_dir():
            mark.touch()


def require_root(what: str) -> None:
    """Raises NotRootError unless this process is root's."""
    if os.geteuid() != 0:
        raise NotRootError(what)


def _require_outside(what: str) -> None:
    """Raises InsidePodError in a command that `lab exec` started: it does not see the host's network and mounts."""
    if MARKER in os.environ:
        raise InsidePodError(what)


@contextlib.contextmanager
def _locked(directory: Path, name: str) -> Iterator[None]:
    """Holds the lab's lock (on its directory itself, so that no lock file is left). Raises LabBusyError, NoLabError."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NoLabError(name) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise LabBusyError(name) from error
    try:
        yield
    finally:
        os.close(fd)
