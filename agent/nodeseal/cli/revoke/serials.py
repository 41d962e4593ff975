"""Serial numbers that a command is given: as words, as lines of a file, or as `nodeseal ca issued` lists them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from nodeseal.cli.errors import CommandError

_FILE_MAX = 64 << 20
_STDIN = Path("-")


def numbers_of(texts: Iterable[str]) -> Iterable[int]:
    """Raises CommandError for what is no serial number."""
    from nodeseal.documents.revocation import parse_serial

    for text in texts:
        number = parse_serial(text)
        if number is None:
            raise CommandError(f"{text[:60]!a} is no serial number in hexadecimal digits")
        yield number


def read_serials(file: Path, node: str | None = None) -> list[str]:
    """Of a file, or of standard input for "-": one a line, or the JSON of `nodeseal ca issued`, which may be what was
    issued to `node` alone then. Raises CommandError."""
    name = "standard input" if file == _STDIN else str(file)
    try:
        if file == _STDIN:
            text = sys.stdin.read(_FILE_MAX + 1)
        else:
            with file.open(encoding="utf-8") as opened:
                text = opened.read(_FILE_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > _FILE_MAX:
        raise CommandError(f"{name} is larger than {_FILE_MAX >> 20} MiB")
    if text.lstrip().startswith("{"):
        return _listed(text, name, node)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise CommandError(f"{name} has no serial number; look whether what should have written it has failed")
    return lines


def _listed(text: str, name: str, node: str | None) -> list[str]:
    import msgspec

    from nodeseal.contracts.output import CaIssued

    try:
        found = msgspec.json.decode(text, type=CaIssued)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CommandError(f"{name} is not what `nodeseal ca issued -o json` prints: {error}") from None
    if found.count > len(found.certificates):
        raise CommandError(
            f"{name} lists {len(found.certificates):,} of {found.count:,} certificates; ask for all of them: leave out "
            "--limit"
        )
    for one in found.certificates:
        if node is not None and one.node != node:
            raise CommandError(
                f"{name} lists the certificate {one.serial[:40]} of the node {one.node[:60]!a}; list those of {node}: "
                f"nodeseal ca issued --node {node} --valid -o json"
            )
    return [one.serial for one in found.certificates]
