"""Many long-lived connections of several pods, and new ones beside them: what every step of the story asks."""

from __future__ import annotations

from cluster.cluster import Cluster
from cluster.story.platform import NAMESPACE, NODE_OF
from cluster.story.scene import LongConnections, NewConnections, PodLife, Scene
from nodeseal_lab.demo.report import CheckFailed, Report

_NODES = (NODE_OF["shipper"], NODE_OF["shipper"], NODE_OF["shipper"], NODE_OF["pipeline"])
_INTERVAL = 5.0


class Crowd:
    """`count` connections; those of the last pod stay on the pipeline's own node."""

    def __init__(self, cluster: Cluster, scene: Scene, count: int) -> None:
        self._cluster = cluster
        self._scene = scene
        self.count = count
        self._pods = [
            LongConnections(cluster, f"crowd-{number}", count // len(_NODES), interval=_INTERVAL, node=node)
            for number, node in enumerate(_NODES)
        ]
        for pod in self._pods:
            pod.wait_open()
        self.requests = NewConnections(cluster, "requests")
        self.requests.wait_for_answers(20)
        self._lives = self._own_lives()

    def wait_reached(self) -> None:
        """Until kubectl reaches every pod. Raises ClusterError."""
        for pod in (*self._pods, self.requests):
            self._cluster.wait_for(pod.is_reached, f"kubectl reaches {pod.name}")

    def check(self, report: Report) -> None:
        """A line comes back on each, none was cut, and new ones are answered. Raises CheckFailed, ClusterError."""
        rounds = [(pod, pod.begin_round()) for pod in self._pods]
        for pod, number in rounds:
            pod.wait_for_round(number)
            pod.check_uncut()
        self.requests.wait_for_answers(20)
        self.requests.check_none_failed()
        if (lives := self._own_lives()) != self._lives:
            raise CheckFailed("no pod was restarted", expected=self._lives, seen=lives)
        report.proved(
            f"a line came back on each of the {self.count} connections: 0 cut, 0 lost; "
            f"{self.requests.answered} new ones answered, 0 failed"
        )

    def end(self, report: Report) -> None:
        """In order: every line that was sent has come back. Raises CheckFailed, ClusterError."""
        self.end_requests(report)
        totals = [pod.end() for pod in self._pods]
        closed, sent, received = (sum(int(words[index]) for words in totals) for index in (1, 2, 3))
        report.check("all end in order", closed == self.count, expected=self.count, seen=closed)
        report.check("every line came back", sent == received, expected=sent, seen=received)
        longest = max(float(words[4]) for words in totals)
        report.proved(
            f"{closed} connections ended in order: {sent} lines sent, {received} came back, one after {longest:.0f} ms "
            "at the latest"
        )
        self.remove()

    def end_requests(self, report: Report) -> None:
        """Those alone. Raises CheckFailed, ClusterError."""
        last = self.requests.end()
        report.check("no new connection failed", last[2] == "0", expected="0", seen=last[2])
        report.proved(f"{last[1]} new connections, one after another: 0 failed")

    def ended(self) -> int:
        """How many connections have ended by themselves."""
        return sum(len(pod.said("cut")) for pod in self._pods)

    def remove(self) -> None:
        """Its pods. Raises ClusterError."""
        names = [pod.name for pod in (*self._pods, self.requests)]
        self._cluster.kubectl("delete", "pod", *names, "--namespace", NAMESPACE)

    def _own_lives(self) -> dict[str, PodLife]:
        """Of all pods that have to stay."""
        names = {*(pod.name for pod in self._pods), self.requests.name}
        lives = self._scene.lives()
        return {name: life for name, life in lives.items() if name in names or name.startswith(("pipeline", "shipper"))}
