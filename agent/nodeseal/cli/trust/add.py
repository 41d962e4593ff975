"""`nodeseal trust add`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.errors import CommandError
from nodeseal.cli.mesh_directory import mesh_options
from nodeseal.cli.options import PATH
from nodeseal.cli.output import print_json
from nodeseal.cli.tree import Command
from nodeseal.cli.trust.anchor_rows import looked, names, row_of, shown
from nodeseal.contracts.output import TrustAdded


@click.command("add", cls=Command)
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True, help="certificates of CAs, PEM")
@click.option("--force", is_flag=True, help="Also what has expired, and what leaves a node's CA without trust.")
@mesh_options
def command(files: tuple[Path, ...], force: bool, directory: Path, output: str) -> int:
    """Makes the certificates in each FILE trust anchors of the mesh: every node takes them on within seconds, with
    nothing restarted and no connection cut. From the first one on the mesh state alone says whom nodes trust, so the
    root by which they issue now has to be among them."""
    from nodeseal.authority.anchors import faults, read_anchors
    from nodeseal.mesh.trust import would_be_lost
    from nodeseal.mesh.trust_anchor import MOST_ANCHORS, TRUST_ANCHORS
    from nodeseal.sources.directory import revocations_file, trust_file, writer

    now = datetime.now(UTC)
    with writer.writing(directory):
        mesh, publishers = looked(directory)
        present = mesh.of(TRUST_ANCHORS)
        anchors = {}
        for path in files:
            for one in read_anchors(path):
                fault, doubt = faults(one, mesh.trust_domain, now)
                if fault is not None:
                    raise CommandError(f"{path}: the certificate {one.key[:16]} is no trust anchor: it {fault}")
                if doubt is not None and not force and one.key not in present:
                    raise CommandError(f"{path}: the certificate {one.key[:16]} {doubt}; --force adds it all the same")
                anchors[one.key] = one
        if len({*present, *anchors}) > MOST_ANCHORS:
            count = len({*present, *anchors})
            raise CommandError(
                f"{directory} would have {count} trust anchors, and at most {MOST_ANCHORS} are possible: remove those "
                "that nobody needs with 'nodeseal trust remove'"
            )
        lost = would_be_lost([*present, *anchors], publishers)
        if lost and not force:
            root, nodes = next(iter(lost.items()))
            raise CommandError(
                f"{names(nodes)} would be trusted by nobody: the root {root[:16]}, by which they issue, is not among "
                "the trust anchors; add its root.pem in the same command"
            )
        revocations_file.restore_anchors(directory, anchors)
        trust_file.add(directory, [one for key, one in anchors.items() if key not in present])
    answer = TrustAdded(
        mesh=str(directory),
        added=[row_of(one, now) for key, one in anchors.items() if key not in present],
        present=[row_of(one, now) for key, one in anchors.items() if key in present],
    )
    if output == "json":
        print_json(answer)
        return 0
    for row in answer.added:
        print(f"added the trust anchor {shown(row)} to {directory}")
    for row in answer.present:
        print(f"the trust anchor {shown(row)} is in {directory} already")
    return 0
