"""`nodeseal trust`: the trust anchors of a mesh."""

from __future__ import annotations

from nodeseal.cli.tree import Group

command = Group(
    "trust",
    __name__,
    {
        "add": "trust a root, on every node, with no connection cut",
        "remove": "trust a root no more, once nothing needs it",
        "list": "the trust anchors, and how long they are valid",
        "status": "which node has which anchor, and which needs it",
    },
    help="The roots that every node of a mesh trusts.",
)
