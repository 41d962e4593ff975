"""`nodeseal ca request`."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import check_new, directory_argument, reporting, say, write_new
from nodeseal.cli.options import PATH, output_option
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaRequested


@click.command("request", cls=Command)
@directory_argument()
@click.argument("file", metavar="FILE", type=PATH, help="the request, a new file")
@output_option
@reporting
def command(directory: Path, file: Path, output: str) -> int:
    """Makes a key, which stays in DIR, and a request for its certificate in FILE. Sign it with `nodeseal ca sign`, and
    bring the certificate back with `nodeseal ca renew DIR --certificate`. DIR needs root.pem. The last request
    counts."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from nodeseal.authority.certificates import key_fingerprint
    from nodeseal.authority.renewal import request

    check_new(file)
    made = request(directory)
    write_new(file, made.public_bytes(Encoding.PEM))
    fingerprint = key_fingerprint(made.public_key())
    say(
        output,
        CaRequested(directory=str(directory), request=str(file), key_sha256=fingerprint),
        f"wrote {file}; the key stays in {directory}",
        f"key SHA-256 {fingerprint}",
        f"sign it where the root's key is: nodeseal ca sign DIR {file.name} FILE",
        f"then, here: nodeseal ca renew {directory} --certificate FILE",
    )
    return 0
