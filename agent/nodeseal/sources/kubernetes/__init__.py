"""Kubernetes as a source of the mesh state: what its objects mean."""
