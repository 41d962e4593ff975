"""Capture: a workload's connections reach the core, and nothing of them is left when it goes."""
