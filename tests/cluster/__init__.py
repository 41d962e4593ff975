"""A Kubernetes cluster on one machine, of real parts: `python -m cluster`, with tests/ in PYTHONPATH.

A node is a set of namespaces (network, mount, PID, cgroup, UTS, IPC) with a root file system, cgroups, a containerd, a
kubelet and a kube-proxy of its own. The control plane has a network namespace of its own. The host's is not touched.
"""
