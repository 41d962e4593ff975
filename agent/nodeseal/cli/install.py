"""`nodeseal install`: what is installed in a Kubernetes cluster."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.manifests import manifests, namespace_option, values_options
from nodeseal.cli.tree import Command


@click.command("install", cls=Command)
@values_options
@namespace_option
def command(
    trust_domain: str | None, image: str | None, files: tuple[Path, ...], settings: tuple[str, ...], namespace: str
) -> int:
    """Prints the objects that make nodeseal of a Kubernetes cluster, for `kubectl apply -f -`. They are those of the
    Helm chart. Asks no cluster, and changes nothing."""
    print("---\n".join(one.text for one in manifests(namespace, trust_domain, image, files, settings)), end="")
    return 0
