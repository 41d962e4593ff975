"""`nodeseal mesh`."""

from __future__ import annotations

from nodeseal.cli.tree import Group

command = Group(
    "mesh",
    __name__,
    {"check": "whether nodes would take it; needs no agent and no root"},
    help="The mesh state in a directory.",
)
