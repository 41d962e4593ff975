"""A check for each row of rows.py, in a cluster where nodeseal is installed.

The namespaces `works` (permissive) and `works-strict` are enrolled, `plain` is not; each has a pod `client`. What a
check makes goes with the namespaces.
"""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeAlias

from cluster.cluster import Cluster
from cluster.credentials import Credentials
from cluster.errors import CommandError
from cluster.images import APPS_IMAGE
from cluster.plan import API_ADDRESS
from cluster.programs import run as run_program
from cluster.story.mesh import Mesh
from cluster.works.rows import ROWS
from nodeseal_lab.demo.report import CheckFailed, Report
from nodeseal_lab.errors import LabError

Json: TypeAlias = dict[str, Any]
PERMISSIVE, STRICT, PLAIN = "works", "works-strict", "plain"
BOTH = (PERMISSIVE, STRICT)
HTTPD = ("busybox", "httpd", "-f", "-p", "8080", "-h", "/etc")
_FORWARDED = "http://127.0.0.1:18080/hostname"
_COPY = "/var/tmp/copied"  # noqa: S108 - the pod's own
_CURL = ("curl", "--silent", "--show-error", "--fail", "--max-time", "4", "--output", "/dev/null")


class Works:
    """Makes things in the cluster, and dials."""

    def __init__(self, cluster: Cluster, mesh: Mesh) -> None:
        self.cluster = cluster
        self.mesh = mesh

    def prepare(self) -> None:
        """The namespaces with their clients. Raises ClusterError."""
        enrolled = {"nodeseal.io/enrol": "true"}
        for name, labels in ((PERMISSIVE, enrolled), (STRICT, {**enrolled, "nodeseal.io/mode": "strict"}), (PLAIN, {})):
            self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
            self.pod(name, "client", ["sleep", "infinity"], node="node1")
        for name in (PERMISSIVE, STRICT, PLAIN):
            self.ready(name, "client")
        for name in BOTH:
            self.enrolled(name, "client")

    def pod(
        self,
        namespace: str,
        name: str,
        command: Sequence[str],
        *,
        node: str = "node1",
        meta: Json | None = None,
        **more: Any,
    ) -> None:
        """`meta`: more of its metadata; `more`: of its container, but for what begins with "pod_"."""
        spec = {key.removeprefix("pod_"): value for key, value in more.items() if key.startswith("pod_")}
        container = {key: value for key, value in more.items() if not key.startswith("pod_")}
        metadata = {"name": name, "namespace": namespace, "labels": {"app": name}, **(meta or {})}
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": metadata,
                "spec": spec_of(command, node, **container) | spec,
            }
        )

    def service(self, namespace: str, name: str, *ports: Json, **more: Any) -> str:
        """Of the pods with the label app=NAME; its address."""
        spec = {"selector": {"app": name}, "ports": list(ports or [{"port": 8080}]), **more}
        metadata = {"name": name, "namespace": namespace}
        self.cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
        return str(self.cluster.get("service", name, "--namespace", namespace)["spec"]["clusterIP"])

    def ready(self, namespace: str, name: str) -> None:
        """Waits for it. Raises ClusterError."""
        words = ["wait", "--for=condition=Ready", f"pod/{name}", "--namespace", namespace, "--timeout=60s"]
        self.cluster.kubectl(*words)

    def status(self, namespace: str, name: str) -> Json:
        """The pod's."""
        found: Json = self.cluster.get("pod", name, "--namespace", namespace)["status"]
        return found

    def enrolled(self, namespace: str, name: str, wanted: bool = True) -> None:
        """Waits until its node's MeshEndpoints have it, or not. Raises ClusterError."""

        def holds() -> bool:
            objects = self.cluster.get("meshendpoints")["items"]
            pods = {(one["namespace"], one["name"]) for item in objects for one in item["spec"]["workloads"]}
            return ((namespace, name) in pods) is wanted

        self.cluster.wait_for(holds, f"{namespace}/{name} is {'' if wanted else 'not '}enrolled", 40.0)

    def run_in(self, namespace: str, pod: str, *command: str) -> str:
        """`kubectl exec`. Raises CommandError."""
        return self.cluster.kubectl("exec", pod, "--namespace", namespace, "--", *command)

    def fetched(self, namespace: str, url: str, pod: str = "client") -> bool:
        """Whether a pod gets it."""
        try:
            self.run_in(namespace, pod, *_CURL, url)
        except CommandError:
            return False
        return True

    def fetched_outside(self, url: str) -> bool:
        """The same, from the control plane's machine."""
        try:
            self.cluster_run(*_CURL, url)
        except CommandError:
            return False
        return True

    def cluster_run(self, *argv: str) -> str:
        """Where the API server is. Raises CommandError."""
        return run_program(self.cluster.client(argv))

    def becomes(self, what: str, ask: Callable[[], bool], expected: bool) -> None:
        """Waits until the answer is as expected. Raises ClusterError."""
        answer = "holds" if expected else "does not hold any more"
        self.cluster.wait_for(lambda: ask() is expected, f"{what}: {answer}", 30.0)

    def event(self, namespace: str, pod: str, *words: str) -> str:
        """Waits for an Event on the pod that has all words; its note. Raises ClusterError."""
        found: list[str] = []

        def there() -> bool:
            words_ = ["events", "--namespace", namespace, "--field-selector", f"involvedObject.name={pod}"]
            items = self.cluster.get(*words_)["items"]
            notes = [one.get("message", "") for one in items if one["reason"] == "NodesealProblem"]
            found[:] = [note for note in notes if all(word in note for word in words)]
            return bool(found)

        self.cluster.wait_for(there, f"an Event on {namespace}/{pod} names {', '.join(words)}", 40.0)
        return found[0]


def spec_of(command: Sequence[str], node: str | None, **container: Any) -> Json:
    """A pod's."""
    one = {"name": "app", "image": APPS_IMAGE, "imagePullPolicy": "Never", "command": list(command), **container}
    found: Json = {"terminationGracePeriodSeconds": 0, "containers": [one]}
    return found | ({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {})


def probes(works: Works) -> None:
    kinds: dict[str, Json] = {
        "http": {"httpGet": {"path": "/hostname", "port": 8080}},
        "tcp": {"tcpSocket": {"port": 8080}},
        "grpc": {"grpc": {"port": 8080}},
        "exec": {"exec": {"command": ["true"]}},
    }
    for namespace in BOTH:
        for kind, probe in kinds.items():
            probe = probe | {"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 2}
            command = ("python3", "/apps/grpc_health.py", "8080") if kind == "grpc" else HTTPD
            works.pod(namespace, f"probe-{kind}", command, readinessProbe=probe, livenessProbe=probe)
    for namespace in BOTH:
        for kind in kinds:
            works.ready(namespace, f"probe-{kind}")
            works.enrolled(namespace, f"probe-{kind}")
    # Long enough for a probe that fails to have restarted its container: waited for by what other probes log.
    for namespace in BOTH:
        for kind in kinds:
            status = works.status(namespace, f"probe-{kind}")
            (one,) = status["containerStatuses"]
            if not one["ready"] or one["restartCount"]:
                raise CheckFailed(f"{namespace}: the {kind} probes pass", expected="ready, no restart", seen=one)


def exec_logs_cp(works: Works) -> None:
    for namespace in BOTH:
        works.pod(namespace, "talker", ["sh", "-c", "echo said; exec sleep infinity"])
        works.ready(namespace, "talker")
        assert_equal("exec", works.run_in(namespace, "talker", "echo", "done").strip(), "done")
        works.cluster_run("kubectl", "cp", "/etc/debian_version", f"{namespace}/talker:{_COPY}")
        own = Path("/etc/debian_version").read_text().strip()
        assert_equal("cp", works.run_in(namespace, "talker", "cat", _COPY).strip(), own)
        assert_equal("logs", works.cluster.kubectl("logs", "talker", "--namespace", namespace).strip(), "said")


def node_ports(works: Works, node: str) -> None:
    for namespace, port, expected in ((PERMISSIVE, 30181, True), (STRICT, 30182, False)):
        works.pod(namespace, "ported", HTTPD, node="node2")
        works.ready(namespace, "ported")
        works.service(namespace, "ported", {"port": 8080, "nodePort": port}, type="NodePort")
        works.enrolled(namespace, "ported")
        url = f"http://{works.cluster.node(node).plan.address}:{port}/hostname"
        works.becomes(f"{namespace}: {url} answers", partial(works.fetched_outside, url), expected)


def webhook(works: Works) -> None:
    program = "until [ -s /tmp/key ]; do sleep 0.2; done; exec python3 /apps/webhook.py 8443 /tmp/crt /tmp/key"
    works.cluster.kubectl("label", "namespace", STRICT, "nodeseal.io/pods-may-relax=true", "--overwrite")
    for namespace, name, excluded, called in (
        (PERMISSIVE, "hook", None, True),
        (STRICT, "hook", None, False),
        (STRICT, "hook-source", {"from": [f"{API_ADDRESS}/32"]}, True),
        (STRICT, "hook-port", {"ports": [8443]}, True),
    ):
        meta: Json = {"annotations": {"nodeseal.io/exclude": json.dumps({"inbound": excluded})}} if excluded else {}
        works.pod(namespace, name, ["sh", "-c", program], meta=meta)
        works.ready(namespace, name)
        works.enrolled(namespace, name)
        address = works.status(namespace, name)["podIP"]
        with tempfile.TemporaryDirectory() as directory:
            made = Credentials(Path(directory, "made"), "https://none")
            certificate, key = made.issue("webhook", "webhook", addresses=[IPv4Address(address)])
            write = 'printf "%s" "$0" > /tmp/crt; printf "%s" "$1" > /tmp/key'
            works.run_in(namespace, name, "sh", "-c", write, certificate.read_text(), key.read_text())
            ca = base64.b64encode(made.ca.read_bytes()).decode()
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
        hook = {
            "name": "works.nodeseal.test",
            "clientConfig": {"url": f"https://{address}:8443", "caBundle": ca},
            "rules": [rule],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": PLAIN}},
            "sideEffects": "None",
            "timeoutSeconds": 2,
            "failurePolicy": "Ignore",
            "admissionReviewVersions": ["v1"],
        }
        kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
        works.cluster.apply({**kind, "metadata": {"name": "works"}, "webhooks": [hook]})
        try:
            works.becomes(f"{namespace}/{name} is called by the API server", lambda: _called(works), called)
        finally:
            works.cluster.kubectl("delete", "validatingwebhookconfiguration", "works")


def _called(works: Works) -> bool:
    try:
        works.cluster.kubectl("create", "configmap", "asked", "--namespace", PLAIN, "--dry-run=server")
    except CommandError as error:
        if "the webhook was here" in error.said:
            return True
        raise
    return False


def port_forward(works: Works) -> None:
    for namespace in BOTH:
        works.pod(namespace, "forwarded", HTTPD)
        works.ready(namespace, "forwarded")
        words = ["port-forward", "pod/forwarded", "--namespace", namespace, "18080:8080"]
        with works.cluster.popen("kubectl", *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as forward:
            try:
                assert forward.stdout is not None
                forward.stdout.readline()
                works.becomes(f"{namespace}: {_FORWARDED}", lambda: works.fetched_outside(_FORWARDED), True)
            finally:
                forward.terminate()


def ephemeral_container(works: Works) -> None:
    for namespace in BOTH:
        url = _target(works, namespace)
        program = f"exec curl --silent --show-error --fail --max-time 10 --output /dev/null {url}"
        words = ["debug", "client", "--namespace", namespace, f"--image={APPS_IMAGE}", "--container=debugger"]
        works.cluster.kubectl(*words, "--image-pull-policy=Never", "--profile=general", "--", "sh", "-c", program)

        def ended(namespace: str = namespace) -> bool:
            (one,) = works.status(namespace, "client").get("ephemeralContainerStatuses", [{}])
            return "terminated" in one.get("state", {})

        works.cluster.wait_for(ended, f"{namespace}: the ephemeral container has ended")
        (one,) = works.status(namespace, "client")["ephemeralContainerStatuses"]
        assert_equal("what it dialled answered", one["state"]["terminated"]["exitCode"], 0)


def init_and_sidecar(works: Works) -> None:
    for namespace in BOTH:
        url = _target(works, namespace)
        fetch = ["sh", "-c", f"exec curl --silent --show-error --fail --max-time 5 --output /dev/null {url}"]
        serve = ["sh", "-c", f"{fetch[2].removeprefix('exec ')} && exec sleep infinity"]
        base = {"image": APPS_IMAGE, "imagePullPolicy": "Never"}
        started = {"exec": {"command": ["sh", "-c", "ps -eo args | grep -q '^sleep infinity'"]}}
        works.pod(
            namespace,
            "starts",
            ["sleep", "infinity"],
            pod_initContainers=[
                {**base, "name": "sidecar", "command": serve, "restartPolicy": "Always", "startupProbe": started},
                {**base, "name": "init", "command": fetch},
            ],
            pod_restartPolicy="Never",
        )
        works.ready(namespace, "starts")
        # The target's strict namespace takes no plaintext: who was answered there came through mutual TLS.
        for one in works.status(namespace, "starts")["initContainerStatuses"]:
            assert_equal(f"{namespace}: restarts of {one['name']}", one["restartCount"], 0)


def job(works: Works) -> None:
    for namespace in BOTH:
        command = [*_CURL, _target(works, namespace)]
        spec = {"backoffLimit": 0, "template": {"spec": spec_of(command, "node2") | {"restartPolicy": "Never"}}}
        metadata = {"name": "once", "namespace": namespace}
        works.cluster.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
        words = ["wait", "--for=condition=Complete", "job/once", "--namespace", namespace, "--timeout=60s"]
        works.cluster.kubectl(*words)
        pods = works.cluster.get("pods", "--namespace", namespace, "-l", "job-name=once")["items"]
        works.enrolled(namespace, pods[0]["metadata"]["name"], wanted=False)


def stateful_set(works: Works) -> None:
    for namespace in BOTH:
        address = works.service(namespace, "kept")
        template = {"metadata": {"labels": {"app": "kept"}}, "spec": spec_of(HTTPD, "node2")}
        spec = {"serviceName": "kept", "selector": {"matchLabels": {"app": "kept"}}, "template": template}
        metadata = {"name": "kept", "namespace": namespace}
        works.cluster.apply({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec})
        url = f"http://{address}:8080/hostname"
        works.becomes(f"{namespace}/kept answers", partial(works.fetched, namespace, url), True)
        before = works.cluster.get("pod", "kept-0", "--namespace", namespace)["metadata"]["uid"]
        works.cluster.kubectl("delete", "pod", "kept-0", "--namespace", namespace)
        works.cluster.kubectl("rollout", "status", "statefulset/kept", "--namespace", namespace, "--timeout=60s")
        after = works.cluster.get("pod", "kept-0", "--namespace", namespace)["metadata"]["uid"]
        if before == after:
            raise CheckFailed("it is another pod", expected="another UID", seen=after)
        works.enrolled(namespace, "kept-0")
        works.becomes(f"{namespace}/kept answers again", partial(works.fetched, namespace, url), True)


def rolling_update(works: Works) -> None:
    for namespace in BOTH:
        address = works.service(namespace, "rolled")
        probe = {"httpGet": {"path": "/hostname", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5}
        # As is good everywhere: a pod that ends goes on to serve until it is in no EndpointSlice any more.
        stop = {"preStop": {"exec": {"command": ["sleep", "5"]}}}
        pod = spec_of(HTTPD, None, readinessProbe=probe, lifecycle=stop) | {"terminationGracePeriodSeconds": 30}
        spec = {
            "replicas": 2,
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": {"app": "rolled"}},
            "template": {"metadata": {"labels": {"app": "rolled"}}, "spec": pod},
        }
        metadata = {"name": "rolled", "namespace": namespace}
        works.cluster.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
        status = ["rollout", "status", "deployment/rolled", "--namespace", namespace, "--timeout=90s"]
        works.cluster.kubectl(*status)
        url = f"http://{address}:8080/hostname"
        works.becomes(f"{namespace}/rolled answers", partial(works.fetched, namespace, url), True)
        loop = f"while :; do {' '.join(_CURL)} {url} && echo ok || echo failed; sleep 0.1; done 2>&1"
        works.pod(namespace, "dialler", ["sh", "-c", loop])
        works.ready(namespace, "dialler")
        works.cluster.kubectl("rollout", "restart", "deployment/rolled", "--namespace", namespace)
        works.cluster.kubectl(*status)
        said = works.cluster.kubectl("logs", "dialler", "--namespace", namespace).split("\n")
        answered = said.count("ok")
        if "failed" in said or answered < 10:
            raise CheckFailed(f"{namespace}: no connection fails", expected="ok alone", seen=said[-5:])


def confined(works: Works) -> None:
    context = {
        "capabilities": {"drop": ["ALL"]},
        "runAsUser": 65534,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
    }
    for namespace in BOTH:
        works.pod(namespace, "confined", HTTPD, node="node2", securityContext=context)
        works.ready(namespace, "confined")
        works.enrolled(namespace, "confined")
        url = f"http://{works.status(namespace, 'confined')['podIP']}:8080/hostname"
        works.becomes(f"{namespace}/confined answers", partial(works.fetched, namespace, url), True)


def drain(works: Works) -> None:
    namespace = PERMISSIVE
    template = {"metadata": {"labels": {"app": "kept-up"}}, "spec": spec_of(HTTPD, None)}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "kept-up"}}, "template": template}
    metadata = {"name": "kept-up", "namespace": namespace}
    budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept-up"}}}
    works.cluster.apply(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": budget},
    )
    works.cluster.kubectl("rollout", "status", "deployment/kept-up", "--namespace", namespace, "--timeout=60s")
    node = works.cluster.nodes[-1].name
    try:
        words = ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s"]
        works.cluster.kubectl(*words)
        pods = works.cluster.get("pods", "--all-namespaces", "--field-selector", f"spec.nodeName={node}")["items"]
        left = {one["metadata"]["name"].rpartition("-")[0] for one in pods}
        assert_equal(f"what is left on {node}", left, {"nodeseal-agent"})
    finally:
        works.cluster.kubectl("uncordon", node)
    works.cluster.kubectl("rollout", "status", "deployment/kept-up", "--namespace", namespace, "--timeout=60s")


def dns(works: Works) -> None:
    for namespace in BOTH:
        works.pod(namespace, "dns", ["python3", "/apps/udp_and_tcp.py", "5300"], node="node2")
        works.ready(namespace, "dns")
        works.enrolled(namespace, "dns")
        ports = [{"name": one, "port": 53, "targetPort": 5300, "protocol": one.upper()} for one in ("udp", "tcp")]
        address = works.service(namespace, "dns", *ports)
        for client in (namespace, PLAIN):
            tcp = client == namespace or namespace == PERMISSIVE
            works.becomes(f"{namespace}/dns by UDP from {client}", partial(_udp, works, client, address), True)
            place = f"{address}:53"
            works.becomes(f"{namespace}/dns by TCP from {client}", partial(_tcp, works, client, place), tcp)


def _udp(works: Works, namespace: str, address: str) -> bool:
    program = (
        "import socket,sys; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2);"
        "s.sendto(b'?', (sys.argv[1], 53)); sys.exit(s.recv(9) != b'udp')"
    )
    try:
        works.run_in(namespace, "client", "python3", "-c", program, address)
    except CommandError:
        return False
    return True


def _tcp(works: Works, namespace: str, place: str) -> bool:
    address, _, port = place.rpartition(":")
    said = json.loads(works.run_in(namespace, "client", "python3", "/apps/dials.py", "3", f"1,{address},{port}"))
    return bool(said == [["udp_and_tcp:tcp"]])


def network_policy(works: Works) -> None:
    for namespace in BOTH:
        works.cluster.kubectl("label", "namespace", namespace, "nodeseal.io/pods-may-relax=true", "--overwrite")
        rule = {"ports": [{"port": 8080, "protocol": "TCP"}]}
        works.cluster.apply(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": "only-http", "namespace": namespace},
                "spec": {"podSelector": {"matchLabels": {"guarded": "yes"}}, "ingress": [rule]},
            }
        )
        labels: Json = {"labels": {"guarded": "yes"}}
        works.pod(namespace, "guarded", HTTPD, meta=labels)
        annotations = {"annotations": {"nodeseal.io/network-policies": "ignored"}}
        works.pod(namespace, "guarded-anyway", HTTPD, meta=labels | annotations)
        works.ready(namespace, "guarded")
        works.ready(namespace, "guarded-anyway")
        works.enrolled(namespace, "guarded-anyway")
        works.event(namespace, "guarded", "only-http")
        works.enrolled(namespace, "guarded", wanted=False)


def bad_label(works: Works) -> None:
    for namespace in BOTH:
        works.pod(namespace, "mislabelled", HTTPD)
        works.ready(namespace, "mislabelled")
        works.enrolled(namespace, "mislabelled")
        for key, value, kind in (
            ("nodeseal.io/enrol", "yes-please", "label"),
            ("nodeseal.io/mode", "strickt", "label"),
            ("nodeseal.io/exclude", "{inbound: {ports: [http]}}", "annotate"),
        ):
            words = [kind, "pod", "mislabelled", "--namespace", namespace, f"{key}={value}"]
            works.cluster.kubectl(*words)
            works.event(namespace, "mislabelled", key)
        works.enrolled(namespace, "mislabelled")


def _target(works: Works, namespace: str) -> str:
    """A server of the namespace, on another node than the clients'; its Service's URL."""
    works.pod(namespace, "target", HTTPD, node="node2")
    works.ready(namespace, "target")
    works.enrolled(namespace, "target")
    url = f"http://{works.service(namespace, 'target')}:8080/hostname"
    works.becomes(f"{namespace}/target answers", lambda: works.fetched(namespace, url), True)
    return url


def assert_equal(what: str, seen: object, expected: object) -> None:
    """Raises CheckFailed."""
    if seen != expected:
        raise CheckFailed(what, expected=expected, seen=seen)


CHECKS: dict[str, Callable[[Works], None]] = {
    "probes": probes,
    "exec-logs-cp": exec_logs_cp,
    "port-forward": port_forward,
    "ephemeral-container": ephemeral_container,
    "init-and-sidecar": init_and_sidecar,
    "job": job,
    "stateful-set": stateful_set,
    "rolling-update": rolling_update,
    "confined": confined,
    "node-port-own-node": lambda works: node_ports(works, "node2"),
    "node-port-other-node": lambda works: node_ports(works, "node1"),
    "webhook": webhook,
    "dns": dns,
    "network-policy": network_policy,
    "bad-label": bad_label,
    "drain": drain,
}
"""By the name of the row, in the order in which they are tried: the last one moves what others have made."""


def run(report: Report, works: Works, names: Sequence[str] = ()) -> list[str]:
    """All of them, or those of these names; what is not as it says. Raises ClusterError, when nothing can be tried."""
    report.step("a", "Two enrolled namespaces, one of them strict, and one that is not")
    works.prepare()
    report.proved("their clients run, and two of the three are enrolled")
    report.step("b", "What keeps working, row by row")
    rows = {row.name: row for row in ROWS}
    failed = []
    for name, check in CHECKS.items():
        if names and name not in names:
            continue
        try:
            check(works)
        except (CheckFailed, LabError, subprocess.TimeoutExpired) as error:
            failed.append(f"{name}: {error}")
            report.did(f"NOT AS IT SAYS: {failed[-1]}")
        else:
            report.proved(f"{name}: {rows[name].what}")
    return failed
