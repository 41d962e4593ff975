"""`nodeseal revoke`: what a mesh does not talk with any more."""

from __future__ import annotations

from nodeseal.cli.tree import Group

command = Group(
    "revoke",
    __name__,
    {
        "identity": "an identity, whoever has a certificate with it",
        "serial": "certificates, by their serial numbers",
        "node": "a node: nothing is issued to it, and the identities that it alone has are revoked",
        "list": "what is revoked, since when, and why",
    },
    help="What the mesh does not talk with any more: connections are cut, and new ones refused.",
)
