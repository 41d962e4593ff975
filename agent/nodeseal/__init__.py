"""nodeseal: mutual TLS for every workload of a node, without a sidecar."""

__version__ = "0.1.0"
