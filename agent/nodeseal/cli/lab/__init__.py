"""`nodeseal lab`: nodes and pods as network namespaces of this machine."""

from __future__ import annotations

from nodeseal.cli.tree import Group

command = Group(
    "lab",
    __name__,
    {
        "up": "make a lab and leave it running",
        "exec": "run a command in a pod",
        "status": "what runs: nodes, pods, and which pods are enrolled",
        "down": "remove a lab, whatever is left of it",
        "enrol": "enrol pods, live",
        "unenrol": "un-enrol pods, live; open connections go on",
        "mode": "whether a pod accepts plaintext from those not enrolled",
        "demo": "the main job in under a minute, every claim measured",
    },
    help="Nodes and pods as network namespaces on this machine, to try nodeseal.",
)
