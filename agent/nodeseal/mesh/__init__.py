"""The mesh: a plain immutable model of workloads and services, and the decisions made from it.

Nothing in this package does I/O, reads a clock or imports another part of nodeseal: sources fill the model, the agent
sends it to the core process, and the core process asks `decide`.
"""
