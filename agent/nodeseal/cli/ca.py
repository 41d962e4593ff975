"""`nodeseal ca`: the certificate authority in a directory, from its making to the next intermediate."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodeseal.cli.errors import CommandError
from nodeseal.cli.nodes import add_output_option
from nodeseal.cli.table import note

if TYPE_CHECKING:
    from cryptography import x509


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `ca` with its commands."""
    parser = subparsers.add_parser("ca", help="the certificate authority in a directory")
    commands = parser.add_subparsers(dest="ca_command", metavar="COMMAND", required=True)
    init = _command(
        commands,
        "init",
        _init,
        "make a root and an intermediate",
        "Makes a root and an intermediate in DIR. Agents need root.pem, intermediate.pem and intermediate.key; "
        "root.key signs intermediates only and belongs somewhere offline.",
        "an empty directory, or one that is made",
    )
    init.add_argument("--trust-domain", default="example.org", metavar="NAME", help="default: example.org")
    _command(
        commands,
        "show",
        _show,
        "what is in it, how long it is valid, and what is wrong",
        "Shows the root, the intermediate and which keys are there, and says whether an agent can use the directory, "
        "what ends soon, and what others than root can get at.",
    )
    renew = _command(
        commands,
        "renew",
        _renew,
        "make the next intermediate, or take one that was signed elsewhere",
        "Gives DIR its next intermediate, with a key of its own: signed by root.key, if that is in DIR, or else the "
        "one in FILE, which `nodeseal ca sign` made from the request of `nodeseal ca request`. It counts whole or not "
        "at all. Agents take it on by themselves, and no connection is cut.",
    )
    renew.add_argument("--certificate", type=Path, metavar="FILE", help="what was signed for DIR's last request")
    request = _command(
        commands,
        "request",
        _request,
        "ask for the next intermediate where the root's key is not",
        "Makes a key, which stays in DIR, and a request for its certificate in FILE. Sign it with `nodeseal ca sign`, "
        "and bring the certificate back with `nodeseal ca renew DIR --certificate`. DIR needs root.pem. The last "
        "request counts.",
    )
    request.add_argument("file", type=Path, metavar="FILE", help="the request, a new file")
    sign = _command(
        commands,
        "sign",
        _sign,
        "sign a request where the root's key is",
        "Signs the key of REQUEST as an intermediate with the root in DIR, for a year, and writes FILE. Nothing else "
        "of the request is taken. Compare the key's SHA-256 with what `nodeseal ca request` printed: a request that "
        "was exchanged on its way would make somebody else a CA.",
        "the directory with root.pem and root.key",
    )
    sign.add_argument("request", type=Path, metavar="REQUEST", help="what `nodeseal ca request` wrote")
    sign.add_argument("file", type=Path, metavar="FILE", help="the certificate, a new file")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    what: str,
    description: str,
    directory: str = "the CA's directory",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=description)
    parser.add_argument("directory", type=Path, metavar="DIR", help=directory)
    add_output_option(parser)
    parser.set_defaults(run=run)
    return parser


def _init(args: argparse.Namespace) -> int:
    from nodeseal.authority.creation import init_authority
    from nodeseal.authority.errors import AuthorityError

    try:
        init_authority(args.directory, trust_domain=args.trust_domain, now=datetime.now(UTC))
    except AuthorityError as error:
        raise CommandError(str(error)) from None
    _say(
        args,
        {"directory": str(args.directory), "trust_domain": args.trust_domain},
        f"made a CA for the trust domain {args.trust_domain} in {args.directory}",
        f"keep {args.directory / 'root.key'} offline: agents do not need it",
    )
    return 0


def _show(args: argparse.Namespace) -> int:
    from nodeseal.authority.description import describe
    from nodeseal.authority.errors import AuthorityError

    try:
        found = describe(args.directory, datetime.now(UTC))
    except AuthorityError as error:
        raise CommandError(str(error)) from None
    print(json.dumps(found, indent=2) if args.output == "json" else text(found))
    return 0


def _renew(args: argparse.Namespace) -> int:
    from nodeseal.authority.errors import AuthorityError
    from nodeseal.authority.renewal import accept, renew

    now = datetime.now(UTC)
    try:
        if args.certificate is not None:
            cert = accept(args.directory, args.certificate, now=now)
        else:
            cert = renew(args.directory, now=now)
    except AuthorityError as error:
        raise CommandError(str(error)) from None
    _say(
        args,
        {"directory": str(args.directory), **_of(cert)},
        f"{args.directory} has its next intermediate, valid until {cert.not_valid_after_utc:%Y-%m-%d %H:%M}Z",
        "agents that read this directory take it on by themselves; others need intermediate.pem and intermediate.key",
    )
    return 0


def _request(args: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives.serialization import Encoding

    from nodeseal.authority.certificates import key_fingerprint
    from nodeseal.authority.errors import AuthorityError
    from nodeseal.authority.renewal import request

    _check_new(args.file)
    try:
        made = request(args.directory)
    except AuthorityError as error:
        raise CommandError(str(error)) from None
    _write(args.file, made.public_bytes(Encoding.PEM))
    fingerprint = key_fingerprint(made.public_key())
    _say(
        args,
        {"directory": str(args.directory), "request": str(args.file), "key_sha256": fingerprint},
        f"wrote {args.file}; the key stays in {args.directory}",
        f"key SHA-256 {fingerprint}",
        f"sign it where the root's key is: nodeseal ca sign DIR {args.file.name} FILE",
        f"then, here: nodeseal ca renew {args.directory} --certificate FILE",
    )
    return 0


def _sign(args: argparse.Namespace) -> int:
    from nodeseal.authority.certificates import pem
    from nodeseal.authority.errors import AuthorityError
    from nodeseal.authority.renewal import sign

    _check_new(args.file)
    try:
        cert = sign(args.directory, args.request, now=datetime.now(UTC))
    except AuthorityError as error:
        raise CommandError(str(error)) from None
    _write(args.file, pem(cert).encode())
    found = _of(cert)
    _say(
        args,
        {"directory": str(args.directory), "certificate": str(args.file), **found},
        f"wrote {args.file}, an intermediate for the trust domain {found['trust_domain']}, valid until "
        f"{cert.not_valid_after_utc:%Y-%m-%d %H:%M}Z",
        f"key SHA-256 {found['key_sha256']}: is that what `nodeseal ca request` printed?",
    )
    return 0


def _of(cert: x509.Certificate) -> dict[str, str | None]:
    from nodeseal.authority.certificates import fingerprint, key_fingerprint, stated_trust_domain

    return {
        "trust_domain": stated_trust_domain(cert),
        "not_after": cert.not_valid_after_utc.isoformat(timespec="seconds"),
        "sha256": fingerprint(cert),
        "key_sha256": key_fingerprint(cert.public_key()),
    }


def _say(args: argparse.Namespace, answer: dict[str, Any], *lines: str) -> None:
    print(json.dumps(answer, indent=2) if args.output == "json" else "\n".join(lines))


def _check_new(path: Path) -> None:
    """Nothing is written over: neither another's request nor, by a slip, a file of the CA."""
    if path.exists():
        raise CommandError(f"{path} exists already; name another file, or remove it")


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}; name another file") from error


def text(found: dict[str, Any]) -> str:
    """What `describe` found, for a person."""
    domain = f" for the trust domain {found['trust_domain']}" if found["trust_domain"] else ""
    parts = [f"CA in {found['directory']}{domain}"]
    used = {cert["key"] for cert in found["certificates"]}
    unused = {name for name, is_there in found["keys"].items() if is_there and name not in used}
    for cert in found["certificates"]:
        left = cert["days_left"]
        life = f"{left} day{'s' if left != 1 else ''} left" if left >= 0 else "expired"
        length = cert["path_length"]
        parts += [
            "",
            f"{cert['role']}: {cert['subject']}",
            f"  valid        from {cert['not_before'][:10]} to {cert['not_after'][:10]}, {life}",
            f"  SHA-256      {cert['sha256']}",
            f"  path length  {length if length is not None else 'any'}",
            f"  key          {_key(cert, unused)}",
        ]
    parts.append("")
    if found["usable"]:
        parts.append("an agent can use it")
    else:
        parts.append(note(f"an agent cannot use it: {found['why']}", ""))
    if "intermediate-next.key" in unused:
        parts.append(note("intermediate-next.key waits for its certificate (nodeseal ca renew --certificate)", ""))
    parts += [note(f"warning: {warning}", "") for warning in found["warnings"]]
    return "\n".join(parts)


def _key(cert: dict[str, Any], unused: Collection[str]) -> str:
    """`unused`: the files with keys that are no certificate's, or cannot be read or used."""
    name = cert["key"]
    if name is None:
        name = f"{cert['role']}.key"
        return f"{name} is here and cannot be used" if name in unused else "not here"
    return f"{name} is here; it belongs somewhere offline" if cert["role"] == "root" else f"{name} is here"
