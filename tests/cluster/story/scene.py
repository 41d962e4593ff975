"""The pods of the story and what they do: requests, long-lived connections, and what is known of them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from cluster.cluster import PATIENCE, Cluster
from cluster.errors import CommandError
from cluster.story import platform
from cluster.story.platform import HTTP_PORT, LINES_PORT, NAMESPACE
from nodeseal_lab.demo.evidence import CARD
from nodeseal_lab.demo.report import CheckFailed

_CURL = ("curl", "--silent", "--show-error", "--max-time", "15")


@dataclass(frozen=True, slots=True)
class PodLife:
    """What is another one after a pod, or a container of it, was started again."""

    uid: str
    restarts: int
    container: str


class Clients:
    """A pod with one program, which says on its standard output how it goes. `name`: the pod's."""

    def __init__(
        self, cluster: Cluster, name: str, program: str, *arguments: str, node: str = platform.NODE_OF["shipper"]
    ) -> None:
        self.name = name
        self._cluster = cluster
        cluster.apply(platform.client(name, program, *arguments, node=node))
        self._kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=180s", seconds=200.0)

    def words(self) -> list[list[str]]:
        """What it has said: the words of each line. Raises CommandError."""
        try:
            text = self._kubectl("logs", self.name)
        except CommandError as error:
            # Before it is started there is no log.
            if "waiting to start" in error.said or "NotFound" in error.said:
                return []
            raise
        return [line.split() for line in text.splitlines()]

    def end(self) -> list[str]:
        """Tells it to end; the words of its last line. Raises ClusterError."""
        self._kubectl("exec", self.name, "--", "kill", "-TERM", "1")
        last = ("closed", "ended")
        self._cluster.wait_for(lambda: self.words()[-1][0] in last, f"{self.name} ends in order")
        return self.words()[-1]

    def is_reached(self) -> bool:
        """Whether `kubectl exec` and `kubectl logs` reach it: a kubelet that has just started knows no pods yet."""
        try:
            self._kubectl("exec", self.name, "--", "true")
            self._kubectl("logs", self.name, "--tail=1")
        except CommandError:
            return False
        return True

    def last_number(self, word: str) -> int:
        """The first number in its last line that begins with this word; 0 without one."""
        return next((int(words[1]) for words in reversed(self.words()) if words[0] == word), 0)

    def _kubectl(self, *words: str, seconds: float = PATIENCE) -> str:
        return self._cluster.kubectl("--namespace", NAMESPACE, *words, seconds=seconds)

    def said(self, word: str) -> list[str]:
        """All lines that begin with this word."""
        return [" ".join(words[1:]) for words in self.words() if words[0] == word]


class LongConnections(Clients):
    """Many connections to the pipeline, a numbered line on each every `interval` seconds, each echo checked."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        count: int,
        *,
        interval: float = 1.0,
        node: str = platform.NODE_OF["shipper"],
    ) -> None:
        self.count = count
        words = ("PIPELINE", str(LINES_PORT), str(count), str(interval))
        super().__init__(cluster, name, "line_clients", *words, node=node)

    def wait_open(self) -> None:
        """Until all are. Raises ClusterError."""
        self._cluster.wait_for(lambda: self.last_number("open") == self.count, f"{self.count} connections are open")

    def lines(self) -> int:
        """How many have come back."""
        return next((int(words[2]) for words in reversed(self.words()) if words[0] == "open"), 0)

    def wait_for_lines(self) -> int:
        """Until one more has come back on each; how many have in all. Raises ClusterError."""
        goal = self.lines() + self.count
        self._cluster.wait_for(lambda: self.lines() >= goal, f"lines come back on {self.count} connections")
        return self.lines()

    def begin_round(self) -> int:
        """Has each send a line at once; the round's number. Raises ClusterError."""
        number = self.last_number("round") + 1
        self._kubectl("exec", self.name, "--", "kill", "-USR1", "1")
        return number

    def wait_for_round(self, number: int) -> None:
        """Until such a line has come back on each that is open. Raises ClusterError."""
        self._cluster.wait_for(lambda: self.last_number("round") >= number, f"a line comes back on all of {self.name}")

    def check_uncut(self) -> None:
        """Raises CheckFailed when one has ended by itself."""
        if cuts := self.said("cut"):
            what = f"none of the {self.count} connections of {self.name} was cut"
            raise CheckFailed(what, expected="0 cut", seen=f"{len(cuts)}, the first: {cuts[0]}")


class NewConnections(Clients):
    """One new connection to the pipeline after another."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name, "new_connections", "PIPELINE", str(HTTP_PORT))

    @property
    def answered(self) -> int:
        return self.last_number("answered")

    def wait_for_answers(self, more: int) -> None:
        """Until this many more were answered. Raises ClusterError."""
        goal = self.answered + more
        self._cluster.wait_for(lambda: self.answered >= goal, f"{more} more new connections are answered")

    def check_none_failed(self) -> None:
        """Raises CheckFailed."""
        if failed := self.said("failed"):
            raise CheckFailed("no new connection failed", expected="0", seen=f"{len(failed)}, the first: {failed[0]}")


class Scene:
    """The platform in a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def deploy(self) -> None:
        """Returns when all of it is available. Raises ClusterError."""
        self.cluster.apply(*platform.objects())
        self.wait_available()

    def wait_available(self) -> None:
        """Until every Deployment is. Raises ClusterError."""
        for namespace in (NAMESPACE, platform.OTHERS):
            words = ["--for=condition=Available", "deployment", "--all", "--namespace", namespace, "--timeout=100s"]
            self.cluster.kubectl("wait", *words)

    def curl(self, app: str, *options: str, namespace: str = NAMESPACE) -> subprocess.CompletedProcess[str]:
        """One request from an app's pod to the pipeline's Service, over a new connection, whatever comes of it."""
        address = self.cluster.get("service", "pipeline", "--namespace", NAMESPACE)["spec"]["clusterIP"]
        argv = ["kubectl", "exec", f"deploy/{app}", "--namespace", namespace, "--"]
        argv += [*_CURL, *options, f"http://{address}:{HTTP_PORT}/"]
        return subprocess.run(
            self.cluster.client(argv), capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )

    def post_card(self) -> str:
        """shipper sends a line with the card number; siem's answer. Raises CheckFailed."""
        done = self.curl("shipper", "--fail", "--data-binary", f"card={CARD} amount=42.00 EUR\n")
        if done.returncode != 0:
            raise CheckFailed("shipper's log line is delivered", expected="HTTP 200", seen=done.stderr.strip())
        return done.stdout.strip()

    def names(self) -> dict[str, str]:
        """The apps by their pods' addresses."""
        found = {}
        for pod in self.cluster.get("pods", "--all-namespaces")["items"]:
            for one in pod["status"].get("podIPs", []):
                labels = pod["metadata"].get("labels", {})
                found[one["ip"]] = labels.get("app", pod["metadata"]["name"])
        return found

    def lives(self) -> dict[str, PodLife]:
        """Of all pods in the pipeline's namespace, by name."""
        return {
            pod["metadata"]["name"]: PodLife(
                pod["metadata"]["uid"], status["restartCount"], status.get("containerID", "")
            )
            for pod in self.cluster.get("pods", "--namespace", NAMESPACE)["items"]
            for status in pod["status"].get("containerStatuses", [])
        }
