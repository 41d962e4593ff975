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
from nodeseal.contracts.key_kind import KeyKind

if TYPE_CHECKING:
    from cryptography import x509
    from msgspec import Struct


def directory_argument(what: str = "the CA's directory") -> Callable[[Callback], Callback]:
    """DIR, where the CA is."""
    return click.argument("directory", metavar="DIR", type=PATH, help=what)


key_type_option = click.option(
    "--key-type",
    type=click.Choice([kind.value for kind in KeyKind]),
    help="The kind of its key; that of the present intermediate, or else of the root, unless given.",
)
"""The command gets a KeyKind's word as `key_type`, or None."""


def kind_of_option(word: str | None) -> KeyKind | None:
    """What `key_type_option` gave."""
    return KeyKind(word) if word is not None else None


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
    from nodeseal.authority.signing_key import kind_of

    return {
        "trust_domain": stated_trust_domain(cert),
        "not_after": cert.not_valid_after_utc.isoformat(timespec="seconds"),
        "sha256": fingerprint(cert),
        "key_sha256": key_fingerprint(cert.public_key()),
        "key_type": kind_of(cert.public_key()),
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
