"""`nodeseal uninstall`: what takes nodeseal out of a Kubernetes cluster."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.manifests import manifests, namespace_option, values_options
from nodeseal.cli.tree import Command


@click.command("uninstall", cls=Command)
@click.option("--delete", is_flag=True, help="Print what is to be deleted when every node is clean.")
@values_options
@namespace_option
def command(
    delete: bool,
    trust_domain: str | None,
    image: str | None,
    files: tuple[Path, ...],
    settings: tuple[str, ...],
    namespace: str,
) -> int:
    """Prints what removes nodeseal from a Kubernetes cluster, in two steps. The first is for `kubectl apply -f -`: a
    pod takes the place of every agent, and is ready when its node is clean. Connections through the cores end then. The
    second, with --delete, is for `kubectl delete -f -`. Say the same values as to `nodeseal install`. Asks no cluster,
    and changes nothing."""
    found = manifests(namespace, trust_domain, image, files, settings, uninstall=True)
    if delete:
        print("---\n".join(one.identity for one in reversed(found)), end="")
    else:
        print("---\n".join(one.text for one in found), end="")
    return 0
