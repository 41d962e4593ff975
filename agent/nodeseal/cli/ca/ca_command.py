"""What every command of `nodeseal ca` has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodeseal.cli.errors import CommandError
from nodeseal.cli.options import PATH, Callback
from nodeseal.cli.output import print_json

if TYPE_CHECKING:
    from cryptography import x509
    from msgspec import Struct


def directory_argument(what: str = "the CA's directory") -> Callable[[Callback], Callback]:
    """DIR, where the CA is."""
    return click.argument("directory", metavar="DIR", type=PATH, help=what)


def reporting(callback: Callback) -> Callback:
    """What the CA refuses is a line of the command's."""

    @functools.wraps(callback)
    def reported(*args: Any, **options: Any) -> Any:
        from nodeseal.authority.errors import AuthorityError

        try:
            return callback(*args, **options)
        except AuthorityError as error:
            raise CommandError(str(error)) from None

    return reported


def describe(cert: x509.Certificate) -> dict[str, Any]:
    """What a script is told of a certificate."""
    from nodeseal.authority.certificates import fingerprint, key_fingerprint, stated_trust_domain

    return {
        "trust_domain": stated_trust_domain(cert),
        "not_after": cert.not_valid_after_utc.isoformat(timespec="seconds"),
        "sha256": fingerprint(cert),
        "key_sha256": key_fingerprint(cert.public_key()),
    }


def say(output: str, answer: Struct, *lines: str) -> None:
    """The answer for a script, or the lines for a person."""
    if output == "json":
        print_json(answer)
    else:
        print("\n".join(lines))


def check_new(path: Path) -> None:
    """Nothing is written over: neither another's request nor, by a slip, a file of the CA."""
    if path.exists():
        raise CommandError(f"{path} exists already; name another file, or remove it")


def write_new(path: Path, data: bytes) -> None:
    """Makes a file of this content."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}; name another file") from error
