"""The command `nodeseal` with all that is below it."""

from __future__ import annotations

import click

from nodeseal import __version__
from nodeseal.cli.tree import Group

NAME = "nodeseal"
_WIDTH = 100

command = Group(
    NAME,
    "nodeseal.cli",
    {
        "status": "this node's workloads: enrolled or why not, identity, certificate",
        "connections": "connections of this node's workloads: mTLS with whom, or plaintext and why",
        "agent": "run the node's agent",
        "upgrade-core": "replace this node's core by a new one; no connection is cut",
        "check": "what this machine has of what a node needs; changes nothing",
        "mesh": "the mesh state in a directory",
        "cleanup": "remove every trace on this node, with or without a running agent",
        "ca": "the certificate authority in a directory",
        "revoke": "what a mesh does not talk with any more",
        "trust": "the roots that every node of a mesh trusts",
        "install": "what makes nodeseal of a Kubernetes cluster, for kubectl",
        "uninstall": "what removes it from a Kubernetes cluster, for kubectl",
        "lab": "nodes and pods as network namespaces on this machine, to try nodeseal",
        "version": "the version of this command",
        "help": "the help of a command",
        "completion": "what a shell needs to complete commands",
    },
    help="Mutual TLS for every workload of a node, without a sidecar.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH},
)
click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s", help="Show the version and exit.")(
    command
)


def context() -> click.Context:
    """That of `nodeseal` itself, to look at commands without running any."""
    return click.Context(command, info_name=NAME, **command.context_settings)
