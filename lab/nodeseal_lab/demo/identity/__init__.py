"""`nodeseal lab demo identity`: who has which identity, a new root, a revocation, a second trust domain."""
