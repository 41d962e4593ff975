"""The rows of docs/kubernetes-what-keeps-working.md; checks.py has a check for each. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """`what` is tried; what becomes of it with permissive and with strict pods. Sentences of Markdown."""

    name: str
    what: str
    permissive: str
    strict: str = "The same."


PARTS: dict[str, tuple[Row, ...]] = {
    "The kubelet, and kubectl": (
        Row(
            "probes",
            "Readiness and liveness probes: HTTP, TCP, gRPC and exec.",
            "They pass: what comes from the pod's own node is left alone.",
        ),
        Row("exec-logs-cp", "`kubectl exec`, `logs` and `cp`.", "They work: none of them dials the pod."),
        Row("port-forward", "`kubectl port-forward`.", "It works: it comes out inside of the pod."),
        Row(
            "ephemeral-container",
            "An ephemeral container (`kubectl debug`).",
            "It starts, and what it dials is the pod's: through mutual TLS.",
        ),
    ),
    "Workloads": (
        Row(
            "init-and-sidecar",
            "Init containers and native sidecars that dial as the first that they do.",
            "They are captured from their first connection on: it is mutual TLS.",
        ),
        Row("job", "A Job whose pod dials an enrolled Service.", "It completes, and its pod is gone from the mesh."),
        Row(
            "stateful-set",
            "A pod of a StatefulSet that is deleted and comes back under its name.",
            "The new one, with another UID and address, is enrolled and answers.",
        ),
        Row(
            "rolling-update",
            "A rolling update of a Deployment that is dialled all the time through its Service.",
            "No new connection fails.",
        ),
        Row(
            "confined",
            "A pod that drops all capabilities, is not root, and has a read-only root.",
            "It is enrolled: nothing is done inside of it.",
        ),
        Row(
            "drain",
            "`kubectl drain` with a PodDisruptionBudget.",
            "The budget is kept, the pods move, the node's agent stays.",
        ),
    ),
    "From outside of the mesh": (
        Row(
            "node-port-own-node",
            "A node port, dialled from outside at the pod's own node.",
            "It answers.",
            "Refused: the client has no identity. That kube-proxy gives it the node's address does not help it: what a "
            "node forwards is told from what it sends itself.",
        ),
        Row(
            "node-port-other-node",
            "A node port, dialled from outside at another node.",
            "It answers.",
            "Refused: the client has no identity, and comes with the other node's address. Put an enrolled ingress in "
            "front, or exclude that port.",
        ),
        Row(
            "webhook",
            "An admission webhook that an enrolled pod serves. The API server calls it; metrics-server and other "
            "aggregated APIs are called by it in the same way.",
            "It is called.",
            "Refused: the API server is no workload. Exclude its addresses by the annotation `nodeseal.io/exclude: "
            "{inbound: {from: [10.88.0.1/32]}}`, or the port by `{inbound: {ports: [8443]}}`: on the namespace, or on "
            "the pod if the namespace has the label `nodeseal.io/pods-may-relax`. Both were tried.",
        ),
        Row(
            "dns",
            "A DNS server for UDP and TCP in an enrolled pod, asked through its Service.",
            "Both answer: UDP is never captured.",
            "UDP answers all, TCP the enrolled alone. Leave DNS out of the mesh, or permissive.",
        ),
    ),
    "What keeps a pod out": (
        Row(
            "network-policy",
            "A NetworkPolicy with ports that selects a pod.",
            "The pod is not enrolled, and an Event on it says why. With the annotation `nodeseal.io/network-policies: "
            "ignored` it is: on the namespace, or on the pod if the namespace has the label "
            "`nodeseal.io/pods-may-relax`.",
        ),
        Row(
            "bad-label",
            "A label or annotation with a value that does not exist.",
            "What was said before stays, and an Event on the pod names the value and what is expected.",
        ),
    ),
}

ROWS = tuple(row for rows in PARTS.values() for row in rows)

NOT_TRIED = (
    "HorizontalPodAutoscalers: there is no metrics-server here. What it does is change the number of replicas, which "
    "`rolling-update` and `stateful-set` try.",
    "Enforcement of NetworkPolicies: the cluster's CNI does not enforce them.",
    "CoreDNS and metrics-server themselves: a small server stands for the first, a webhook for the second, since the "
    "API server calls both alike.",
    "Static pods. A process of the node is a workload of its own kind ([host-workloads.md](host-workloads.md)).",
)
