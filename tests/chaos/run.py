"""One chaos run: a lab, connections, a bad link, a watch on it, and events; then everything ends in order."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from chaos.actions import Actions
from chaos.errors import ChaosError
from chaos.impairment import Impairment
from chaos.ledger import Ledger
from chaos.monitor import Monitor
from chaos.network import BadLink, Watch
from chaos.players import Players, players
from chaos.report import Finding, Logged, Report
from chaos.scene import Scene
from chaos.schedule import Event, make_schedule
from nodeseal.capture.backends.backend import Choice
from nodeseal_lab.errors import LabError
from nodeseal_lab.lab import LAB_ROOT, Lab, take_down
from nodeseal_lab.plan import Plan, PodRequest
from support.options import BACKEND
from support.pod_traffic import new_marker
from support.resources import Resources, node_resources
from support.settings import lab_settings

SETTINGS = {"certificate_lifetime": "60s"}
_PROGRESS_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Options:
    """Of a run."""

    seed: int
    minutes: float
    connections: int
    log: Path


def asked_players() -> Players:
    """Those that the backend which was asked for can capture."""
    return players(hosts=BACKEND.asked() is not Choice.IPTABLES)


@contextlib.contextmanager
def new_lab(name: str, settings: dict[str, Any]) -> Iterator[Lab]:
    """A supervised lab, as `lab up` makes it; gone afterwards, whatever happens. Raises LabError."""
    asked = asked_players()
    requests = [PodRequest.parse(text) for text in asked.pods]
    requests += [PodRequest.parse_host_workload(text) for text in asked.host_workloads]
    plan = Plan.build(name, more_pods=requests, ipv6=True)
    with lab_settings(settings):
        lab = Lab.up(plan, with_apps=False)
    try:
        yield lab
    finally:
        failures = take_down(name, LAB_ROOT).failures
    if failures:
        raise ChaosError(f"the lab was not taken down: {failures[0]}")


class ChaosRun:
    """See the module's text. `report` is there at any time, for a run that is interrupted."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._began = 0.0
        self._logged = 0  # violations that are in the log
        self._ledger = Ledger({})
        self._events: Counter[str] = Counter()
        self.report = Report(options.seed, options.minutes * 60, complete=False)

    def run(self, lab: Lab) -> None:
        """Raises ChaosError and LabError when it cannot be made."""
        options = self._options
        self._ledger.nodes = {str(address): pod.node for pod in lab.plan.pods for address in pod.addresses}
        scene = Scene(lab, asked_players(), new_marker(), new_marker())
        options.log.parent.mkdir(parents=True, exist_ok=True)
        with options.log.open("w") as log:
            watch = Watch(lab, scene.secret, scene.open_marker)
            link = BadLink(lab, options.seed)
            scene.start()
            scene.warm_up()
            before = at_rest(lab)
            scene.open_all(options.connections)
            monitor = Monitor(lab, scene, watch, self._ledger)
            self._began = time.monotonic()
            monitor.start()
            try:
                actions = Actions(lab, scene, link, self._ledger)
                self._play(actions, scene, log)
                link.set(Impairment())
                actions.undo_mesh()
                monitor.wait_back(lambda text: self._ledger.add(time.monotonic(), "event", text))
            finally:
                monitor.stop()
                self._collect(scene, watch, link)
            if left := scene.finish():
                self._ledger.add(time.monotonic(), "stuck", f"{left} connections do not end in order")
            monitor.look()
            self._check_watch(watch)
            self._collect(scene, watch, link)
            self._compare(before, at_rest(lab))
            self._collect(scene, watch, link)
            self._log_findings(log)
            scene.close()
            if self.report.findings:
                self._keep_logs(lab)
        self.report.complete = True

    def _play(self, actions: Actions, scene: Scene, log: TextIO) -> None:
        seconds = self._options.minutes * 60
        told = self._began
        for event in [*make_schedule(self._options.seed, seconds, scene.players.cast()), None]:
            due = self._began + (seconds if event is None else event.at)
            while (wait := due - time.monotonic()) > 0:
                time.sleep(min(wait, 0.5))
                self._log_findings(log)
                if time.monotonic() - told > _PROGRESS_SECONDS:
                    told = time.monotonic()
                    self._tell(scene)
            if event is not None:
                self._happen(actions, event, log)

    def _happen(self, actions: Actions, event: Event, log: TextIO) -> None:
        began = time.monotonic()
        self._events[event.kind.value] += 1
        # Before it is done: what it breaks is to be found behind it.
        logged = len(self.report.history)
        self.report.history.append(Logged(round(began - self._began, 2), str(event)))
        try:
            said = actions.do(event)
        except (ChaosError, LabError) as error:
            said = f"did not come true: {error}"
            self._ledger.add(time.monotonic(), "event", f"{event}: {error}")
        took = time.monotonic() - began
        text = f"{event}{f': {said}' if said else ''}"
        self.report.history[logged] = Logged(round(began - self._began, 2), text)
        log.write(f"{began - self._began:9.2f} {text} ({took:.2f} s)\n")
        log.flush()

    def _log_findings(self, log: TextIO) -> None:
        """Those that are not in the log yet, where they were found: somebody may be looking."""
        violations = self._ledger.violations[self._logged :]
        self._logged += len(violations)
        for violation in violations:
            log.write(f"{violation.at - self._began:9.2f} VIOLATION {violation.what}: {violation.detail}\n")
        log.flush()

    def _keep_logs(self, lab: Lab) -> None:
        """The logs of agents and cores, beside that of the events: with the lab they would be gone."""
        for node, run_dir in lab.run_dirs.items():
            for path in run_dir.glob("*.log*"):
                shutil.copy(path, self._options.log.with_name(f"{self._options.log.stem}-{node}-{path.name}"))

    def _check_watch(self, watch: Watch) -> None:
        if not watch.stats()["open"]:
            self._ledger.add(
                time.monotonic(), "watch", "plaintext that has to be there was not seen: the watch is blind"
            )

    def _compare(self, before: dict[str, Resources], after: dict[str, Resources]) -> None:
        for line in differences(before, after):
            self._ledger.add(time.monotonic(), "leak", line)

    def _collect(self, scene: Scene, watch: Watch, link: BadLink) -> None:
        """Brings the report up to date."""
        report, ledger, sums = self.report, self._ledger, scene.sums()
        report.events = dict(self._events)
        report.long_lived = self._options.connections
        report.opened, report.closed = sums.opened, sums.closed
        report.messages, report.bytes, report.slowest_ms = sums.messages, sums.bytes, sums.slowest_ms
        report.excused_cut, report.excused_failed = ledger.excused["cut"], ledger.excused["failed"]
        frames, carried = watch.stats(), link.stats()
        report.frames, report.open_frames = frames["frames"], frames["open"]
        report.frames_lost = int(carried["lost"])
        report.findings = [
            Finding(round(violation.at - self._began, 2), violation.what, violation.detail)
            for violation in sorted(ledger.violations, key=lambda violation: violation.at)
        ]

    def _tell(self, scene: Scene) -> None:
        sums = scene.sums()
        print(
            f"{time.monotonic() - self._began:6.0f} s  {sum(self._events.values())} events, "
            f"{sums.open:,} connections open, "
            f"{sums.messages:,} messages, {self._ledger.excused['cut']:,} cut by core crashes, "
            f"{len(self._ledger.violations)} violations",
            file=sys.stderr,
            flush=True,
        )


def at_rest(lab: Lab, seconds: float = 90.0) -> dict[str, Resources]:
    """What each node holds when one core runs there, nothing is connected, and nothing changes any more."""
    deadline = time.monotonic() + seconds
    last: list[dict[str, Resources]] = []
    while True:
        with contextlib.suppress(AssertionError):
            last.append({node.name: node_resources(lab, node.name) for node in lab.plan.nodes})
            one_core = all(snapshot.lines["cores"]["running"] == 1 for snapshot in last[-1].values())
            if one_core and len(last) > 3 and not any(differences(older, last[-1]) for older in last[-4:-1]):
                return last[-1]
        if time.monotonic() > deadline:
            if not last:
                raise ChaosError("agents or cores are missing at the end")
            return last[-1]
        time.sleep(0.2)


def differences(before: dict[str, Resources], after: dict[str, Resources]) -> list[str]:
    """Of all nodes, a line each."""
    return [f"{node}: {line}" for node, resources in before.items() for line in resources.differences(after[node])]
