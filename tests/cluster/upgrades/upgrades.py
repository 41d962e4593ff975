"""What is done and checked, step by step. A claim that does not hold raises CheckFailed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cluster.agent_image import agent_image
from cluster.cluster import Cluster
from cluster.errors import CommandError
from cluster.images import apps_image, name_of
from cluster.plan import ClusterPlan, ProxyMode
from cluster.story import footprint, platform
from cluster.story.mesh import NAMESPACE as SYSTEM
from cluster.story.mesh import Mesh
from cluster.story.platform import NAMESPACE
from cluster.story.scene import NewConnections, Scene
from cluster.story.story import EMPTY
from cluster.story.wire import Wire, handshakes, other_flows
from cluster.upgrades.crowd import Crowd
from cluster.upgrades.page import INSTALL, UPGRADE, Page, commands
from cluster.upgrades.versions import CORELESS, EXITS, FORMER, UNREADY, failing_images, image_of, load_former
from nodeseal_lab.demo.report import Report

CONNECTIONS = 1000
FORMER_COMMIT = "fbbc2f0f"
_AGENTS = "daemonset/nodeseal-agent"


class Upgrades:
    """One run of it, in a cluster of its own."""

    def __init__(
        self,
        report: Report,
        name: str,
        proxy: ProxyMode,
        image: Path | None = None,
        former: Path | None = None,
        only: str = "",
    ) -> None:
        """`image`, `former`: archives of nodeseal's image; None: one of this checkout, one of a former commit.
        `only`: the letters of the steps, of those between the first and the last."""
        self.report = report
        self._plan = ClusterPlan(name, proxy=proxy)
        self._archive, self._former, self._only = image, former, only
        self.cluster: Cluster
        self.scene: Scene
        self.mesh: Mesh
        self.crowd: Crowd
        self.wire: Wire
        self.upgrade: Page
        self.install: Page
        self.image = ""
        self._restarted = 0.0

    def run(self) -> None:
        """Every step, in order; the cluster is gone at the end. Raises CheckFailed, ClusterError, LabError."""
        self.report.say(
            f"Upgrades of nodeseal in Kubernetes, under {CONNECTIONS} long-lived connections of several pods: "
            f"{self._plan.count} nodes with kubelet, containerd and kube-proxy ({self._plan.proxy}). The commands are "
            "those of docs/upgrade-on-kubernetes.md."
        )
        archive = self._archive or agent_image()
        former = self._former or image_of(FORMER_COMMIT)
        self.image = name_of(archive)
        with Cluster.up(self._plan, [apps_image()]) as self.cluster:
            load_former(self.cluster, former)
            self.cluster.load(archive, *failing_images())
            self.scene = Scene(self.cluster)
            self.mesh = Mesh(self.cluster, self.image)
            words = {
                "registry.example.com/nodeseal:0.1.0": self.image,
                "registry.example.com/nodeseal:0.2.0": self.image,
            }
            self.upgrade = Page(self.cluster, UPGRADE, {**words, "shop": NAMESPACE})
            self.install = Page(self.cluster, INSTALL, {**words, "shop": NAMESPACE})
            self.wire = Wire(self.cluster)
            try:
                self.steps()
            finally:
                self.wire.close()

    def steps(self) -> None:
        """In order."""
        self.installation()
        between: dict[str, Callable[[], None]] = {
            "b": self.restarts,
            "c": self.configurations,
            "d": self.failing_versions,
            "e": self.work_on_a_node,
            "f": self.mixed_versions,
        }
        for letter, step in between.items():
            if not self._only or letter in self._only:
                step()
        self.deletion()
        self.removal()

    def installation(self) -> None:
        """(a)"""
        report = self.report
        report.step("a", f"{CONNECTIONS} connections through mutual TLS")
        self.scene.deploy()
        self.before = footprint.read(self.cluster)
        self.did(self.install, "Install", "helm install")
        self.did(self.install, "Install", "kubectl label")
        self.mesh.wait_rolled_out()
        self.did(self.install, "Enrol", "kubectl label")
        self.wait_enrolled()
        self.wire.cut()
        self.crowd = Crowd(self.cluster, self.scene, CONNECTIONS)
        self.wait_enrolled()
        self.check()
        report.show(self.mesh.table())

    def restarts(self) -> None:
        """(b)"""
        report = self.report
        report.step("b", "The agents are replaced: kubectl rollout restart, maxSurge 1")
        heading = "Another configuration"
        self.restart_and_wait(heading)
        self.check()
        report.did("Twice in a row, without waiting for the first")
        self.restart(heading)
        self.restart_and_wait(heading)
        self.check()

    def configurations(self) -> None:
        """(c)"""
        report = self.report
        report.step("c", "helm upgrade --wait, and maxSurge 0")
        before = self.agents()
        self.timed(self.upgrade, "Another configuration", "helm upgrade")
        report.check("every agent is another one", not before & self.agents(), expected="others", seen=before)
        self.check()
        self.timed(self.upgrade, "Nodes without room for two agents", "helm upgrade")
        self.check()
        heading = "Another configuration"
        self.restart_and_wait(heading)
        self.check()
        self.restart(heading)
        self.restart_and_wait(heading)
        self.check()
        self.helm("--set agent.updateStrategy.maxSurge=1 --set agent.updateStrategy.maxUnavailable=0 --wait")

    def failing_versions(self) -> None:
        """(d)"""
        report = self.report
        report.step("d", "A new version that fails, three ways")
        for image, how in (
            (EXITS, "its agent exits"),
            (UNREADY, "its agent never gets ready"),
            (CORELESS, "its agent takes over, and its core does not start"),
        ):
            report.did(f"An image {how}:")
            before = self.agents()
            self.helm(f"--set image.name={image}", shown=True)
            self.cluster.wait_for(partial(self.failing, image), f"an agent of {image} runs or fails")
            kept = before & self.agents()
            report.check("the rollout stops", len(kept) == len(before), expected=before, seen=self.agents())
            self.new_pod(image.rpartition(":")[2])
            self.check()
            stuck = self.stuck()
            report.check("the rollout does not end", bool(stuck), expected="it waits", seen="it ended")
            report.proved(f"the rollout has stopped; the {len(before)} agents from before are there: {stuck}")
            self.timed(self.upgrade, "A version that fails", "helm rollback")
            self.mesh.wait_rolled_out()
            self.wait_enrolled()
            self.check()
        report.did("With kubectl alone:")
        self.did(self.upgrade, "Node by node", "kubectl -n nodeseal-system set image", **{self.image: EXITS})
        self.cluster.wait_for(lambda: self.failing(EXITS), "the agent fails")
        self.timed(self.upgrade, "A version that fails", "kubectl -n nodeseal-system rollout undo")
        self.mesh.wait_rolled_out()
        self.check()

    def work_on_a_node(self) -> None:
        """(e)"""
        report = self.report
        report.step("e", "Kubelet, containerd, drain, a killed agent")
        # One after the other: a kubelet that starts ends again where no containerd answers.
        for service in ("containerd", "kubelet"):
            for node in self.cluster.nodes:
                node.restart(service)
                report.did(f"{service} of {node.name} is restarted.")
            self.crowd.wait_reached()
            self.cluster.wait_ready()
            self.check()
        report.did("The kubelets are restarted while agents end: a second SIGTERM comes.")
        self.restart("Another configuration")
        for node in self.cluster.nodes:
            node.restart("kubelet")
        self.mesh.wait_rolled_out()
        self.crowd.wait_reached()
        self.check()
        node = self.cluster.node("node1")
        line = f"kubectl drain {node.name} --ignore-daemonsets --pod-selector app=siem --timeout=100s"
        report.did(line)
        before = self.agents()
        self.upgrade.run(line)
        self.check()
        report.check("the agents stay", self.agents() == before, expected=before, seen=self.agents())
        self.upgrade.run(f"kubectl uncordon {node.name}")
        self.scene.wait_available()
        self.wait_enrolled()
        report.proved(f"siem was evicted; after `kubectl uncordon` it is back on {node.name}, and enrolled")
        self.scene.post_card()
        self.check()
        for node in self.cluster.nodes:
            found = node.run("pgrep", "-f", "nodeseal agent --config").split()
            node.run("kill", "-KILL", *found)
        report.did("kill -9 of every agent")
        self.mesh.wait_rolled_out()
        self.new_pod("killed")
        self.wait_enrolled()
        self.check()

    def mixed_versions(self) -> None:
        """(f)"""
        report = self.report
        report.step("f", "Two versions in one cluster, in both orders, forth and back")
        heading = "Node by node"
        # What both know: the former one refuses the value that is the default today.
        self.helm("--set agent.cni.onFailure=closed --wait", shown=True)
        report.did(f"The former version ({FORMER_COMMIT}) is installed: a roll-back")
        self.did(self.upgrade, heading, "kubectl -n nodeseal-system set image", **{self.image: FORMER})
        self.mesh.wait_rolled_out()
        self.wait_enrolled()
        self.check()
        self.did(self.upgrade, heading, "kubectl -n nodeseal-system patch")
        for image, nodes in (
            (self.image, ("node1", "node2")),
            (FORMER, ("node1", "node2")),
            (self.image, ("node2", "node1")),
        ):
            self.did(self.upgrade, heading, "kubectl -n nodeseal-system set image", **{self.image: image})
            for node in nodes:
                self.did(self.upgrade, heading, "kubectl -n nodeseal-system delete pod", node1=node)
                self.cluster.wait_for(partial(self.is_on, node, image), f"{node} has {image}")
                self.new_pod(f"on-{node}")
                self.scene.post_card()
                self.wait_enrolled()
                self.check()
                report.show("\n".join(f"{one}: {', '.join(self.ready_on(one))}" for one in ("node1", "node2")))
        (last,) = (line for line in commands(UPGRADE, heading) if "RollingUpdate" in line)
        report.did(last)
        self.upgrade.run(last)
        self.mesh.wait_rolled_out()
        self.check()

    def deletion(self) -> None:
        """(g)"""
        report = self.report
        report.step("g", "The DaemonSet is deleted: capture and cores go on")
        self.did(self.upgrade, "When somebody deletes the DaemonSet alone", "kubectl -n nodeseal-system delete")
        self.cluster.wait_for(lambda: not self.agents(), "no agent is left")
        self.check()
        report.did("A new pod, with no agent:")
        self.cluster.apply(platform.client("late", "new_connections", "PIPELINE", str(platform.HTTP_PORT)))
        self.cluster.wait_for(self.refusal, "the late pod is refused", 240.0)
        report.proved(f"it does not start: {self.refusal()}")
        self.check()

    def removal(self) -> None:
        """(h)"""
        report = self.report
        report.step("h", "Uninstalled: nothing is left on the nodes")
        self.crowd.end_requests(report)
        self.did(self.upgrade, "Uninstall", "kubectl label")
        ended = self.crowd.ended()
        self.timed(self.upgrade, "Uninstall", "helm upgrade")
        self.mesh.wait_rolled_out()
        self.cluster.wait_for(lambda: self.crowd.ended() == CONNECTIONS, "the connections through the cores end")
        report.proved(f"{self.crowd.ended() - ended} connections ended with their cores, as the page says")
        self.timed(self.upgrade, "Uninstall", "helm uninstall")
        pods = ("pods", "--namespace", SYSTEM)
        self.cluster.wait_for(lambda: not self.cluster.get(*pods)["items"], "the pods of nodeseal have ended")
        if "late" in self.scene.lives():
            self.cluster.kubectl(
                "wait", "--for=condition=Ready", "pod/late", "--namespace", NAMESPACE, "--timeout=100s"
            )
            report.proved("the late pod starts")
            self.cluster.kubectl("delete", "pod", "late", "--namespace", NAMESPACE)
        self.wire.cut()
        self.scene.post_card()
        self.crowd.remove()
        after = footprint.read(self.cluster)
        left = [line for line in footprint.left(self.before, after) if not line.endswith(EMPTY)]
        report.check("the nodes are as they were", not left, expected="nothing else", seen="; ".join(left[:5]))
        report.proved(f"{sum(map(len, after.values()))} lines compared on {len(after)} nodes: as before")

    def check(self) -> None:
        """Nothing was cut or lost, and nothing but tunnels crossed the wire. Raises CheckFailed, ClusterError."""
        self.crowd.check(self.report)
        packets = self.wire.cut()
        names = self.scene.names()
        others = {f"{names.get(one[0])} -> {names.get(one[2])}:{one[3]}" for one in other_flows(packets, [])}
        self.report.check("nothing but tunnels between the nodes", not others, expected="none", seen=sorted(others))
        if opened := handshakes(packets):
            self.report.proved(f"on the wire nothing but tunnels, {len(opened)} of them new: {opened[0][2]}")

    def wait_enrolled(self) -> None:
        """Until every pod of the namespace is published as enrolled, and no other. Raises ClusterError."""
        names = set(self.scene.lives())
        self.cluster.wait_for(lambda: self.published() == names, f"{len(names)} pods are enrolled")

    def published(self) -> set[str]:
        """The pods that the nodes have published: MeshNodes do not count each pod that comes and goes at once."""
        objects = self.cluster.get("meshendpoints")["items"]
        return {pod["name"] for one in objects for pod in one["spec"]["workloads"] if pod["namespace"] == NAMESPACE}

    def new_pod(self, name: str) -> None:
        """One that dials at once; it is gone when this returns. Raises CheckFailed, ClusterError."""
        began = time.monotonic()
        pod = NewConnections(self.cluster, f"new-{name}")
        pod.wait_for_answers(5)
        seconds = time.monotonic() - began
        self.wait_enrolled()
        pod.check_none_failed()
        self.cluster.kubectl("delete", "pod", pod.name, "--namespace", NAMESPACE)
        self.report.proved(f"a new pod is enrolled, and its connections are answered after {seconds:.1f} s")

    def restart_and_wait(self, heading: str) -> None:
        """Raises ClusterError."""
        before = self.agents()
        self.restart(heading)
        self.timed(self.upgrade, heading, "kubectl -n nodeseal-system rollout status")
        self.report.check("other agents", not before & self.agents(), expected="others", seen=before)
        self.wait_enrolled()

    def restart(self, heading: str) -> None:
        """kubectl refuses a second one within the same second. Raises ClusterError."""
        time.sleep(max(0.0, self._restarted + 2.0 - time.monotonic()))
        self.did(self.upgrade, heading, "kubectl -n nodeseal-system rollout restart")
        self._restarted = time.monotonic()

    def did(self, page: Page, heading: str, beginning: str, **words: str) -> None:
        """A command of a page. Raises ClusterError."""
        line = page.command(heading, beginning, **words)
        self.report.did(line)
        page.run(line)

    def timed(self, page: Page, heading: str, beginning: str) -> None:
        """One that waits. Raises ClusterError."""
        began = time.monotonic()
        self.did(page, heading, beginning)
        self.report.proved(f"ended after {time.monotonic() - began:.1f} s")

    def helm(self, options: str, *, shown: bool = False) -> None:
        """helm upgrade, as the page has it, with other options. Raises ClusterError."""
        line = self.upgrade.command("To another version", "helm upgrade").partition(" --set")[0] + f" {options}"
        if shown:
            self.report.did(line)
        self.upgrade.run(line)

    def agents(self) -> set[str]:
        """The names of their pods that are not being deleted."""
        return {one["metadata"]["name"] for one in self._agents() if "deletionTimestamp" not in one["metadata"]}

    def ready_on(self, node: str) -> list[str]:
        """The images of a node's agents, if all of them are Ready."""
        own = [one for one in self._agents() if one["spec"].get("nodeName") == node]
        ready = all(
            status["ready"] for one in own for status in one["status"].get("containerStatuses", [{"ready": False}])
        )
        return [one["spec"]["containers"][0]["image"] for one in own] if ready else []

    def is_on(self, node: str, image: str) -> bool:
        """Whether a node has one agent, Ready and of this image."""
        return self.ready_on(node) == [image]

    def failing(self, image: str) -> bool:
        """Whether an agent of this image was started, and is not Ready or has ended."""
        for one in self._agents():
            for status in one["status"].get("containerStatuses", []):
                if one["spec"]["containers"][0]["image"] == image and (
                    status["restartCount"] > 0 or ("running" in status["state"] and not status["ready"])
                ):
                    return True
        return False

    def stuck(self) -> str:
        """What `rollout status` says while a rollout goes on; nothing when it has ended."""
        try:
            self.cluster.kubectl("rollout", "status", _AGENTS, "--namespace", SYSTEM, "--timeout=10s")
        except CommandError as error:
            return error.said.strip().splitlines()[-1]
        return ""

    def refusal(self) -> str:
        """Why the late pod does not start, as its Event says."""
        words = ["events", "--namespace", NAMESPACE, "--field-selector", "involvedObject.name=late"]
        for event in self.cluster.get(*words)["items"]:
            if "nodeseal" in event.get("message", ""):
                text: str = event["message"]
                return text[text.index("nodeseal") :][:200]
        return ""

    def _agents(self) -> list[dict[str, Any]]:
        words = ("--namespace", SYSTEM, "-l", "app.kubernetes.io/component=agent")
        return list(self.cluster.get("pods", *words)["items"])
