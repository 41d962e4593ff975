"""`nodeseal ca key`: what agents know the service by."""

from __future__ import annotations

from nodeseal.cli.tree import Group

command = Group(
    "key",
    __name__,
    {
        "show": "the present one, the next and the former",
        "next": "make the next one, which is not used yet",
        "switch": "use it from now on",
    },
    help="The service's own key, by which agents know it: docs/certificate-service.md says how to rotate it.",
)
