"""The story of `make cluster-upgrades`: agents, cores and nodes are replaced under connections that go on."""
