"""What is done and checked, step by step. A claim that does not hold raises CheckFailed."""

from __future__ import annotations

import time
from pathlib import Path

from cluster.agent_image import agent_image
from cluster.cluster import Cluster
from cluster.images import apps_image, name_of
from cluster.plan import ClusterPlan, ProxyMode
from cluster.story import footprint
from cluster.story.mesh import Mesh
from cluster.story.platform import HTTP_PORT, LINES_PORT, NAMESPACE, OTHERS, SIEM_PORT
from cluster.story.scene import LongConnections, NewConnections, Scene
from cluster.story.wire import Wire, handshakes, other_flows, readable
from nodeseal_lab.demo.evidence import CARD, HBONE_PORT, payload
from nodeseal_lab.demo.pcap import Flow, Packet
from nodeseal_lab.demo.report import CheckFailed, Report

LONG_CONNECTIONS = 200
_POSTS = 5
# A volume's directory on the node, which nothing in a container can remove. What is in one has a line of its own.
EMPTY = tuple(f"file\t{path}" for path in ("/run/nodeseal", "/run/nodeseal-nodes", "/var/lib/nodeseal"))


class Story:
    """One run of it, in a cluster of its own."""

    def __init__(self, report: Report, name: str, proxy: ProxyMode, image: Path | None = None) -> None:
        """`image`: an archive of nodeseal's image; None: one of this checkout is made."""
        self.report = report
        self._plan = ClusterPlan(name, proxy=proxy)
        self._image = image
        self.cluster: Cluster
        self.scene: Scene
        self.mesh: Mesh
        self.wire: Wire | None = None
        self.old: LongConnections
        self.new: LongConnections
        self.requests: NewConnections
        self._old_flows: set[Flow] = set()

    def run(self) -> None:
        """Every step, in order; the cluster is gone at the end. Raises CheckFailed, ClusterError, LabError."""
        self.report.say(
            f"nodeseal in Kubernetes: a telemetry pipeline on {self._plan.count} nodes with kubelet, containerd and "
            f"kube-proxy ({self._plan.proxy}). The nodes are namespaces of this machine; all programs are real."
        )
        image = self._image or agent_image()
        images = [apps_image(), image]
        began = time.monotonic()
        with Cluster.up(self._plan, images) as self.cluster:
            nodes = ", ".join(f"{one.name} {one.address}, pods {one.pods[0]}" for one in self._plan.nodes)
            self.report.say(f"  {nodes}; Ready after {time.monotonic() - began:.1f} s")
            self.scene = Scene(self.cluster)
            self.mesh = Mesh(self.cluster, name_of(image))
            try:
                self.steps()
            finally:
                if self.wire is not None:
                    self.wire.close()

    def steps(self) -> None:
        """In order."""
        self.running_platform()
        self.installation()
        self.enrolment()
        self.encryption()
        self.strict_mode()
        self.upgrades()
        self.node_reboot()
        self.removal()

    def running_platform(self) -> None:
        """(a)"""
        report = self.report
        report.step("a", "A platform that runs: what the wire shows")
        report.did("shipper sends log lines to the Service pipeline, which forwards them to the Service siem.")
        self.scene.deploy()
        self.wire = Wire(self.cluster)
        self.old = LongConnections(self.cluster, "long-before", LONG_CONNECTIONS)
        self.old.wait_open()
        self.requests = NewConnections(self.cluster, "requests")
        self.requests.wait_for_answers(20)
        self._old_flows = {packet.flow for packet in self.cut() if packet.destination_port == LINES_PORT}
        answer = self.scene.post_card()
        self.check_readable(self.cut())
        report.proved(f'siem stored the line: "{answer}"; the card number can be read on the wire between the nodes')
        report.proved(
            f"{self.old.count} connections to pipeline:{LINES_PORT} are open, a line a second on each; a new one to "
            f"pipeline:{HTTP_PORT} after another"
        )
        self.lives = self.scene.lives()
        self.before = footprint.read(self.cluster)

    def installation(self) -> None:
        """(b)"""
        report = self.report
        report.step("b", "nodeseal is installed; nothing is enrolled")
        report.did("nodeseal install | kubectl apply -f -")
        began = time.monotonic()
        self.mesh.install()
        report.proved(f"an agent on each node is Ready after {time.monotonic() - began:.1f} s")
        self.check_undisturbed()
        self.cut()
        self.scene.post_card()
        self.check_readable(self.cut())
        report.proved("nothing has changed for the pods: no other namespace is enrolled than those that are labelled")

    def enrolment(self) -> None:
        """(c)"""
        report = self.report
        report.step("c", "A namespace is labelled, under load")
        report.did(f"kubectl label namespace {NAMESPACE} nodeseal.io/enrol=true")
        began = time.monotonic()
        self.label("nodeseal.io/enrol=true")
        self.mesh.wait_enrolled(len(self.lives))
        seconds = time.monotonic() - began
        report.proved(f"{len(self.lives)} running pods are enrolled after {seconds:.1f} s")
        report.show(self.mesh.table())
        self.check_undisturbed()

    def encryption(self) -> None:
        """(d)"""
        report = self.report
        report.step("d", "What the wire shows now")
        report.did(f"A new pod opens {LONG_CONNECTIONS} connections as the first that it does.")
        self.cut()
        self.new = LongConnections(self.cluster, "long-after", LONG_CONNECTIONS)
        self.new.wait_open()
        self.lives = self.scene.lives()
        self.mesh.wait_enrolled(len(self.lives))
        for _ in range(_POSTS):
            self.scene.post_card()
        self.requests.wait_for_answers(20)
        self.check_encrypted(self.cut())
        report.proved(
            f"{self.new.count} long-lived connections of a new pod are open through mutual TLS, its first included; "
            f"the {self.old.count} old ones go on"
        )

    def strict_mode(self) -> None:
        """(e)"""
        report = self.report
        report.step("e", "Strict: nobody without an identity comes in")
        before = self.scene.curl("intruder", "--fail", namespace=OTHERS)
        report.check("permissive lets the intruder in", before.returncode == 0, expected="HTTP 200", seen=before.stderr)
        report.did(f"kubectl label namespace {NAMESPACE} nodeseal.io/mode=strict")
        self.label("nodeseal.io/mode=strict")

        def refused() -> bool:
            return self.scene.curl("intruder", "--fail", namespace=OTHERS).returncode != 0

        self.cluster.wait_for(refused, "the intruder is refused")
        seen = self.scene.curl("intruder", "--fail", namespace=OTHERS).stderr.strip()
        report.proved(f"the intruder's connection, which was answered before, is refused: {seen}")
        self.requests.wait_for_answers(20)
        self.requests.check_none_failed()
        self.new.wait_for_lines()
        self.new.check_uncut()
        report.proved("the pods of the namespace talk on: 0 cut, 0 failed; the kubelet's probes too")
        self.check_lives()

    def upgrades(self) -> None:
        """(f)"""
        report = self.report
        report.step("f", "The agents are replaced, twice in a row")
        report.did("kubectl rollout restart daemonset/nodeseal-agent")
        for number in (1, 2):
            began = time.monotonic()
            self.mesh.restart()
            report.proved(f"rollout {number} is complete after {time.monotonic() - began:.1f} s")
        self.mesh.wait_enrolled(len(self.lives))
        self.check_undisturbed()
        self.new.wait_for_lines()
        self.new.check_uncut()
        report.proved(f"{self.new.count} connections through mutual TLS: 0 cut, {self.new.lines()} lines came back")

    def node_reboot(self) -> None:
        """(g)"""
        report = self.report
        report.step("g", "A node loses its power, and comes back")
        requests, old, new = self.requests.end(), self.old.end(), self.new.end()
        report.check("no request failed", requests[2] == "0", expected="0", seen=requests[2])
        report.proved(
            f"until now: {requests[1]} new connections, 0 failed; {int(old[1]) + int(new[1])} long-lived ones ended in "
            f"order, {int(old[3]) + int(new[3])} lines came back"
        )
        for name in (self.requests.name, self.old.name, self.new.name):
            self.cluster.kubectl("delete", "pod", name, "--namespace", NAMESPACE)
        node = self.cluster.node("node2")
        assert self.wire is not None
        self.wire.close()
        self._old_flows.clear()
        began = time.monotonic()
        node.kill()
        report.did(f"{node.name} is off: every process on it is killed, its /run is gone.")
        self.cluster.start_node(node)
        self.wire = Wire(self.cluster)
        self.mesh.wait_rolled_out()
        self.scene.wait_available()
        self.cluster.wait_for(lambda: self.scene.curl("shipper", "--fail").returncode == 0, "pipeline answers shipper")
        report.proved(f"shipper is answered again after {time.monotonic() - began:.1f} s")
        self.mesh.wait_enrolled(len(self.scene.lives()))
        for _ in range(_POSTS):
            self.scene.post_card()
        self.check_encrypted(self.cut())

    def removal(self) -> None:
        """(h)"""
        report = self.report
        report.step("h", "nodeseal is removed: nothing is left on the nodes")
        report.did("nodeseal uninstall | kubectl apply -f -; nodeseal uninstall --delete | kubectl delete -f -")
        began = time.monotonic()
        self.mesh.uninstall()
        self.cluster.kubectl("label", "namespace", NAMESPACE, "nodeseal.io/enrol-", "nodeseal.io/mode-")
        seconds = time.monotonic() - began
        self.cut()
        self.scene.post_card()
        self.check_readable(self.cut())
        report.proved(f"removed after {seconds:.1f} s; the pods talk on, in plaintext as in (a)")
        after = footprint.read(self.cluster)
        left = footprint.left(self.before, after)
        left = [line for line in left if not line.endswith(EMPTY)]
        report.check("the nodes are as they were", not left, expected="nothing else", seen="; ".join(left[:5]))
        report.proved(
            f"{sum(map(len, after.values()))} lines compared on {len(after)} nodes (rules, routes, filters, sysctls, "
            "cgroups, BPF programs, files, mounts, processes; of the nodes and of their pods): as in (a), but for the "
            "empty directories of the agents' volumes, which a kubelet makes and never removes"
        )
        kinds = self.cluster.kubectl("get", "crds", "-o", "name")
        report.check("no kind of nodeseal is left", "nodeseal" not in kinds, expected="none", seen=kinds)

    def label(self, *labels: str) -> None:
        """On the pipeline's namespace."""
        self.cluster.kubectl("label", "namespace", NAMESPACE, "--overwrite", *labels)

    def cut(self) -> list[Packet]:
        """The packets between pods on the wire since the last cut."""
        assert self.wire is not None
        return self.wire.cut()

    def check_readable(self, packets: list[Packet]) -> None:
        """That the card number went over the wire in plaintext, on both of its ways. Raises CheckFailed."""
        flows = self.named(readable(packets, CARD))
        expected = {("shipper", "pipeline", HTTP_PORT), ("pipeline", "siem", SIEM_PORT)}
        self.report.check("the card number is on the wire", flows == expected, expected=expected, seen=flows)

    def check_encrypted(self, packets: list[Packet]) -> None:
        """That there was nothing but TLS 1.3 beside the old connections. Raises CheckFailed, ClusterError."""
        report = self.report
        flows = self.named(readable(packets, CARD))
        report.check("no card number on the wire", not flows, expected="none", seen=_some(flows))
        others = self.named(other_flows(packets, self._old_flows))
        report.check("nothing but tunnels between the nodes", not others, expected="none", seen=_some(others))
        tunnels = [packet for packet in packets if HBONE_PORT in packet.ports]
        report.check("the tunnels carry it", payload(tunnels) > 0, expected="bytes on port 15008", seen="none")
        shown = {(one, other): how for one, other, how in handshakes(packets)}
        names = self.scene.names()
        but = " but the connections from (a)" if self._old_flows else ""
        for (one, other), how in sorted(shown.items()):
            report.proved(f"{names.get(one, one)} {one} -> {names.get(other, other)} {other}:{HBONE_PORT}: {how}")
        report.proved(
            f"{_POSTS} more lines with the card number delivered; {payload(tunnels):,} bytes in tunnels; the card "
            f"number is in none, and nothing else goes between the pods' addresses{but}"
        )

    def check_undisturbed(self) -> None:
        """That no pod was restarted, no connection cut and no request failed. Raises CheckFailed, ClusterError."""
        lines = self.old.wait_for_lines()
        self.old.check_uncut()
        self.requests.wait_for_answers(20)
        self.requests.check_none_failed()
        self.check_lives()
        self.report.proved(
            f"0 of {self.old.count} long-lived connections cut, {lines} lines came back; {self.requests.answered} new "
            f"connections answered, 0 failed; no pod was restarted"
        )

    def check_lives(self) -> None:
        """That every pod is the same, with the same container. Raises CheckFailed."""
        lives = self.scene.lives()
        if changed := {name for name in {*lives, *self.lives} if lives.get(name) != self.lives.get(name)}:
            raise CheckFailed("no pod was restarted", expected="none", seen=", ".join(sorted(changed)))

    def named(self, flows: set[Flow]) -> set[tuple[str, str, int]]:
        """(from app, to app, port)."""
        names = self.scene.names()
        return {(names.get(source, source), names.get(target, target), port) for source, _, target, port in flows}


def _some(flows: set[tuple[str, str, int]]) -> str:
    """The first of them, and how many there are."""
    first = [f"{source} -> {target}:{port}" for source, target, port in sorted(flows)[:3]]
    return f"{len(flows)}: {', '.join(first)}"
