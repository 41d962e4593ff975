"""What `nodeseal install` and `nodeseal uninstall` have in common: options that say what the objects are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodeseal.cli.errors import CommandError, UsageError
from nodeseal.cli.options import PATH, Callback
from nodeseal.manifests import NAMESPACE

if TYPE_CHECKING:
    from nodeseal.manifests.chart import Manifest

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""RFC 1123, as Kubernetes has it for namespaces."""


def namespace_option(callback: Callback) -> Callback:
    """--namespace."""
    return click.option(
        "--namespace", "-n", default=NAMESPACE, show_default=True, metavar="NAME", help="Where all of it is."
    )(callback)


def values_options(callback: Callback) -> Callback:
    """--trust-domain, --image, --values and --set."""
    options: tuple[Callable[[Callback], Callback], ...] = (
        click.option("--trust-domain", metavar="NAME", help="The mesh's trust domain.  [default: cluster.local]"),
        click.option("--image", metavar="IMAGE", help="The image, with its tag or digest."),
        click.option("--values", "-f", "files", type=PATH, multiple=True, metavar="FILE", help="Values in YAML."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="One value, such as image.pullPolicy=Never.",
        ),
    )
    for option in reversed(options):
        callback = option(callback)
    return callback


def manifests(
    namespace: str,
    trust_domain: str | None,
    image: str | None,
    files: tuple[Path, ...],
    settings: tuple[str, ...],
    **always: Any,
) -> list[Manifest]:
    """The objects of the chart with these values; `always`: values over which nothing comes. Raises CommandError."""
    from nodeseal.manifests.chart import Chart, ChartError
    from nodeseal.manifests.values import ValuesError, read_setting, read_values

    if not _LABEL.fullmatch(namespace):
        raise UsageError(f"--namespace {namespace}: expected a name of a-z, 0-9 and '-', of at most 63")
    # The namespace is there before Helm begins; nobody else makes it here.
    changes: list[Mapping[str, Any]] = [{"namespace": {"create": True}}]
    chart = Chart()
    try:
        for path in files:
            try:
                changes.append(read_values(path.read_bytes(), path))
            except OSError as error:
                raise CommandError(f"cannot read {path}: {error.strerror}") from None
        changes += map(read_setting, settings)
        if trust_domain is not None:
            changes.append({"trustDomain": trust_domain})
        if image is not None:
            changes.append({"image": {"name": image}})
        return chart.manifests(namespace, chart.values([*changes, always]))
    except ValuesError as error:
        raise UsageError(str(error)) from None
    except ChartError as error:
        raise CommandError(str(error)) from None
