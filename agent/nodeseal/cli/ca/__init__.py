"""`nodeseal ca`: the certificate authority in a directory, from its making to the next intermediate."""

from __future__ import annotations

from nodeseal.cli.tree import Group

command = Group(
    "ca",
    __name__,
    {
        "init": "make a root and an intermediate",
        "show": "what is in it, how long it is valid, and what is wrong",
        "renew": "make the next intermediate, or take one that was signed elsewhere",
        "request": "ask for the next intermediate where the root's key is not",
        "sign": "sign a request where the root's key is",
    },
    help="The certificate authority in a directory.",
)
