"""The traffic program of a pod, from a test's side: support/traffic.py does the work, in the pod's namespace; that of a
host workload in its node's, and in its cgroup."""

from __future__ import annotations

import contextlib
import secrets
import sys
from pathlib import Path
from typing import Any

from nodeseal_lab.cgroups import in_cgroup
from nodeseal_lab.lab import Lab
from support.control import Remote
from support.messages import MARKER_SIZE
from support.patience import wait_for

TESTS = Path(__file__).resolve().parents[1]
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from support.traffic import main; main(*sys.argv[1:])"

Address = tuple[str, int]


def new_marker() -> bytes:
    """What payload is made of, and no other bytes on the machine."""
    return secrets.token_bytes(MARKER_SIZE)


def traffic_command(control: Path, host: str) -> list[str]:
    """How to run the program, see support.traffic.main."""
    return [sys.executable, "-c", _START, str(TESTS), str(control), host]


class PodTraffic:
    """Starts the program in the pod; it ends with the `with` block, or with the lab."""

    def __init__(self, lab: Lab, pod: str) -> None:
        where = lab.plan.pod(pod)
        self.pod = pod
        self.host = str(where.address)
        self._port = where.port  # 0 of a pod: any
        self._lab = lab
        # Its own, also beside another program of the same pod; the path of a Unix socket is short.
        control = lab.directory / f"{pod}-{secrets.token_hex(3)}.sock"
        lab.pod_directory(pod).mkdir(parents=True, exist_ok=True)
        self.record = lab.processes.start(
            f"app {pod}",
            in_cgroup(where.cgroup, traffic_command(control, self.host)),
            netns=where.netns,
            output=lab.pod_directory(pod) / "traffic.log",
        )
        self._remote = Remote(control)
        wait_for(self._connect, f"the traffic program of {pod} answers")

    def __enter__(self) -> PodTraffic:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the program, and with it every connection."""
        self._remote.close()
        self._lab.processes.end([self.record])

    def listen(self, host: str = "") -> Address:
        """A new listener's address: the pod's IPv4 one or that which is given; a host workload has one, at its port."""
        return host or self.host, int(self._remote.ask("listen", host=host, port=self._port))

    def open(self, group: str, address: Address, count: int, marker: bytes, **options: Any) -> None:
        """Dials `count` connections more in the group; `options` as in support.traffic_connection.Group."""
        self._remote.ask("open", group=group, address=address, count=count, marker=marker.hex(), **options)

    def finish(self, group: str) -> None:
        """Every connection of the group sends a last message, and ends when the other side has as well."""
        self._remote.ask("finish", group=group)

    def group(self, name: str) -> dict[str, int]:
        """The counts of a group, see support.traffic_connection.Counts."""
        counts: dict[str, int] = self._remote.ask("counts")["groups"][name]
        return counts

    def counts(self) -> dict[str, Any]:
        """{"groups": {group: its counts}, "served": the counts of what was accepted}."""
        counts: dict[str, Any] = self._remote.ask("counts")
        return counts

    def incidents(self, since: int = 0) -> list[dict[str, Any]]:
        """What went wrong, from number `since` on, see support.traffic."""
        incidents: list[dict[str, Any]] = self._remote.ask("incidents", since=since)
        return incidents

    def _connect(self) -> bool:
        assert self.record.alive, f"the traffic program of {self.pod} has ended: {self._log()}"
        with contextlib.suppress(OSError):
            self._remote.connect()
            return True
        return False

    def _log(self) -> str:
        return (self._lab.pod_directory(self.pod) / "traffic.log").read_text()[-2000:]
