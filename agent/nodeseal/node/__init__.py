"""The node: what the agent knows and keeps together."""
