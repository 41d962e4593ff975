"""The issuer of the workloads' certificates, and their lifecycle on this node."""
