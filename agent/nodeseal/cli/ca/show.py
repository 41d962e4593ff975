"""`nodeseal ca show`."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import directory_argument, reporting
from nodeseal.cli.options import output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.table import note
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaCertificate, CaDescription


@click.command("show", cls=Command)
@directory_argument()
@output_option
@reporting
def command(directory: Path, output: str) -> int:
    """Shows the root, the intermediate and which keys are there, and says whether an agent can use the directory, what
    ends soon, and what others than root can get at."""
    from nodeseal.authority.description import describe

    found = describe(directory, datetime.now(UTC))
    if output == "json":
        print_json(found)
    else:
        print(text(found))
    return 0


def text(found: CaDescription) -> str:
    """What `describe` found, for a person."""
    domain = f" for the trust domain {found.trust_domain}" if found.trust_domain else ""
    parts = [f"CA in {found.directory}{domain}"]
    used = {cert.key for cert in found.certificates}
    unused = {name for name, is_there in found.keys.items() if is_there and name not in used}
    for cert in found.certificates:
        left = cert.days_left
        life = f"{left} day{'s' if left != 1 else ''} left" if left >= 0 else "expired"
        length = cert.path_length
        parts += [
            "",
            f"{cert.role}: {cert.subject}",
            f"  valid        from {cert.not_before[:10]} to {cert.not_after[:10]}, {life}",
            f"  SHA-256      {cert.sha256}",
            f"  serial       {cert.serial}",
            f"  path length  {length if length is not None else 'any'}",
            f"  key type     {cert.key_type}",
            f"  key          {_key(cert, unused)}",
        ]
    parts.append("")
    if found.usable:
        parts.append("an agent can use it")
    else:
        parts.append(note(f"an agent cannot use it: {found.why}", ""))
    if "intermediate-next.key" in unused:
        parts.append(note("intermediate-next.key waits for its certificate (nodeseal ca renew --certificate)", ""))
    parts += [note(f"warning: {warning}", "") for warning in found.warnings]
    return "\n".join(parts)


def _key(cert: CaCertificate, unused: Collection[str]) -> str:
    """`unused`: the files with keys that are no certificate's, or cannot be read or used."""
    name = cert.key
    if name is None:
        name = f"{cert.role}.key"
        return f"{name} is here and cannot be used" if name in unused else "not here"
    return f"{name} is here; it belongs somewhere offline" if cert.role == "root" else f"{name} is here"
