"""The splice core: the process that carries every byte."""

from nodeseal import contracts as contracts  # before anything imports msgspec, see there
