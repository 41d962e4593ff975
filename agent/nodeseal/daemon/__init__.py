"""The agent's process, and the commands that work without one."""

from nodeseal import contracts as contracts  # before anything imports msgspec, see there
