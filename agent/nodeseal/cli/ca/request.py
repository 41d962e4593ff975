"""`nodeseal ca request`."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import (
    check_new,
    directory_argument,
    key_type_option,
    kind_of_option,
    reporting,
    say,
    write_new,
)
from nodeseal.cli.options import PATH, output_option
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaRequested


@click.command("request", cls=Command)
@directory_argument()
@click.argument("file", metavar="FILE", type=PATH, help="the request, a new file")
@key_type_option
@output_option
@reporting
def command(directory: Path, file: Path, key_type: str | None, output: str) -> int:
    """Makes a key, which stays in DIR, and a request for its certificate in FILE. Sign it with `nodeseal ca sign`, and
    bring the certificate back with `nodeseal ca renew DIR --certificate`. DIR needs root.pem. The last request
    counts."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from nodeseal.authority.certificates import key_fingerprint
    from nodeseal.authority.renewal import request
    from nodeseal.authority.signing_key import kind_of

    check_new(file)
    made = request(directory, kind_of_option(key_type))
    write_new(file, made.public_bytes(Encoding.PEM))
    fingerprint = key_fingerprint(made.public_key())
    kind = kind_of(made.public_key())
    say(
        output,
        CaRequested(directory=str(directory), request=str(file), key_sha256=fingerprint, key_type=kind),
        f"wrote {file}; the key stays in {directory}",
        f"key SHA-256 {fingerprint}",
        f"sign it where the root's key is: nodeseal ca sign DIR {file.name} FILE",
        f"then, here: nodeseal ca renew {directory} --certificate FILE",
    )
    return 0
