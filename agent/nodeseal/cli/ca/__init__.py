"""`nodeseal ca`: the certificate authority in a directory, from its making to the next intermediate, and the service
that issues from it."""

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
        "serve": "issue certificates to agents over HTTPS",
        "status": "how the service is: active or standing by, what it has issued, what is wrong",
        "token": "what nodes join with",
        "key": "what agents know the service by, and its next one",
        "issued": "which certificates the service has issued",
        "export": "all of them, for other programs",
        "backup": "copy the service's state",
    },
    help="The certificate authority in a directory, and the service that issues from it.",
)
