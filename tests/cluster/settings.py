"""The configuration files of a node's programs. Pure."""

from __future__ import annotations

import json
from typing import Any

from cluster.plan import DOMAIN, ClusterPlan, NodePlan

PAUSE_IMAGE = "nodeseal.test/pause:1"

CNI_CONFIG = "etc/cni/net.d"
CNI_PROGRAMS = "opt/cni/bin"
CNI_FILE = "10-cluster.conflist"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
KUBERNETES_FILES = "etc/kubernetes"
"""Certificates, kubeconfigs and these files, below the node's root."""


def kubelet() -> str:
    """KubeletConfiguration v1beta1."""
    return _document(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            # A lower one needs CAP_SYS_RESOURCE, which root of a container does not always have.
            "oomScoreAdj": 0,
            "podLogsDir": "/var/log/pods",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"/{KUBERNETES_FILES}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDomain": DOMAIN,
            "resolvConf": "/etc/resolv.conf",
            # All nodes share one disk and one memory, which other things fill as well.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            # What is wanted is soon seen: the defaults are for thousands of nodes.
            "nodeStatusUpdateFrequency": "4s",
            "maxPods": 110,
        }
    )


def admission() -> str:
    """AdmissionConfiguration v1 of the API server: as on GKE, pods of the system's classes need a quota that names
    them."""
    scope = {"scopeName": "PriorityClass", "operator": "In"}
    classes = ["system-node-critical", "system-cluster-critical"]
    quota = {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "ResourceQuotaConfiguration",
        "limitedResources": [{"resource": "pods", "matchScopes": [{**scope, "values": classes}]}],
    }
    return _document(
        {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AdmissionConfiguration",
            "plugins": [{"name": "ResourceQuota", "configuration": quota}],
        }
    )


def kube_proxy(plan: ClusterPlan) -> str:
    """KubeProxyConfiguration v1alpha1."""
    return _document(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": plan.proxy.value,
            "clientConnection": {"kubeconfig": f"/{KUBERNETES_FILES}/kube-proxy.kubeconfig"},
            "clusterCIDR": ",".join(map(str, plan.pod_ranges)),
            "detectLocalMode": "ClusterCIDR",
            "oomScoreAdj": 0,
            # These settings are the machine's, not a namespace's: they are left alone.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
    )


def containerd() -> str:
    """Its config.toml, version 2."""
    return f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE a container cannot be given a lower value than its parent has.
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/{CNI_PROGRAMS}"
  conf_dir = "/{CNI_CONFIG}"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def cni(node: NodePlan) -> str:
    """The list of CNI plugins: a veth pair for each pod, routed; addresses of this node's ranges; hostPorts."""
    everywhere = ["0.0.0.0/0", "::/0"][: len(node.pods)]
    return _document(
        {
            "cniVersion": "1.0.0",
            "name": "cluster",
            "plugins": [
                {
                    "type": "ptp",
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": str(pods)}] for pods in node.pods],
                        "routes": [{"dst": destination} for destination in everywhere],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
    )


def kubelet_arguments(node: NodePlan) -> list[str]:
    """What its file cannot say."""
    return [
        f"--config=/{KUBERNETES_FILES}/kubelet.yaml",
        f"--kubeconfig=/{KUBERNETES_FILES}/kubelet.kubeconfig",
        f"--hostname-override={node.name}",
        f"--node-ip={','.join(map(str, node.addresses))}",
        "--root-dir=/var/lib/kubelet",
        "--cert-dir=/var/lib/kubelet/pki",
    ]


def _document(value: dict[str, Any]) -> str:
    """JSON, which is YAML."""
    return json.dumps(value, indent=2) + "\n"
