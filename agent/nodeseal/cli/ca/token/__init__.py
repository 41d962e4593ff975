"""`nodeseal ca token`: what a node joins with."""

from __future__ import annotations

from nodeseal.cli.tree import Group

command = Group(
    "token",
    __name__,
    {
        "create": "make one for a node",
        "list": "which there are, and what became of them",
        "revoke": "make one useless",
    },
    help="Join tokens: a node proves itself with one the first time, and when it was away for too long.",
)
