"""One workload's way into the mesh and out of it."""
