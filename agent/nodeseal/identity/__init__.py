"""Identity: the embedded certificate authority and the certificates of workloads."""
