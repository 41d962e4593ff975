"""Kubernetes: its API server, and what is followed there."""
