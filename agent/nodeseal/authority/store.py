"""The files of a CA directory: read with care, replaced whole, keys for their owner only.

The intermediate and its key are two files, and no system call replaces two. So the next key is put beside the present
one first, and the certificate is what decides: its rename is the moment in which the next intermediate counts. A reader
takes the key that belongs to the certificate, wherever it is; `settle` moves it to its place. Whoever is ended between
any two steps leaves a directory in which the one or the other pair is whole.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from nodeseal.authority.certificates import REMEDY, belong_together, parse
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.signing_key import FileKey
from nodeseal.linux import directories
from nodeseal.linux.permissions import PRIVATE, keep_owner, others_can

ROOT_CERTIFICATE = "root.pem"
ROOT_KEY = "root.key"
INTERMEDIATE_CERTIFICATE = "intermediate.pem"
INTERMEDIATE_KEY = "intermediate.key"
NEXT_KEY = "intermediate-next.key"
"""Of an intermediate that is not there yet; see above."""

_MAX_FILE = 1 << 20

Stamp = tuple[tuple[int, int, int], ...]
"""Inode, time of change and size of each file."""


def read(path: Path, *, private: bool = False, remedy: str = REMEDY) -> bytes:
    """A file's content, of 1 MiB at most. `private`: it must be its owner's only, and the owner root or this user; for
    root also the one whose directory it is in.
    `remedy`: what to do when it cannot be used.

    Raises AuthorityError."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            why = others_can(status, PRIVATE, path.parent) if private else None
            data = b"" if why else file.read(_MAX_FILE + 1)
    except OSError as error:
        raise AuthorityError(f"cannot read the CA's file {path}: {error.strerror or error}; {remedy}") from error
    if why is not None:
        raise AuthorityError(
            f"others can read the key in {path}: {why}; correct that (chown root, chmod 600), and make another key if "
            "somebody may have read it"
        )
    if len(data) > _MAX_FILE:
        raise AuthorityError(f"the CA's file {path} is larger than 1 MiB; {remedy}")
    return data


def read_certificates(path: Path, *, remedy: str = REMEDY) -> list[x509.Certificate]:
    """One or more. Raises AuthorityError."""
    data = read(path, remedy=remedy)
    try:
        return parse(data)
    except ValueError:
        raise AuthorityError(f"{path} does not hold a certificate in PEM form that can be used; {remedy}") from None


def read_key(path: Path, *, remedy: str = REMEDY) -> FileKey:
    """A private key that nobody else can read. Raises AuthorityError."""
    data = read(path, private=True, remedy=remedy)
    try:
        key = FileKey.read(data)
    except TypeError:
        raise AuthorityError(
            f"the key in {path} is encrypted; put it there unencrypted, readable by root only"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        # The library's text is left out: nothing that was made of a key's bytes may get into a log.
        raise AuthorityError(f"{path} does not hold a private key in PEM form; {remedy}") from None
    if key is None:
        raise AuthorityError(
            f"the key in {path} is neither ECDSA, nor Ed25519, nor RSA; put a CA of one of these kinds there"
        )
    return key


def read_key_of(directory: Path, cert: x509.Certificate) -> FileKey:
    """The intermediate's key, also from a directory that somebody is about to change. Raises AuthorityError."""
    try:
        key = read_key(directory / INTERMEDIATE_KEY)
    except AuthorityError:
        if (following := _next_key_of(directory, cert)) is None:
            raise
        return following
    if belong_together(key, cert):
        return key
    if (following := _next_key_of(directory, cert)) is not None:
        return following
    raise AuthorityError(
        f"{directory / INTERMEDIATE_KEY} is not the key of {directory / INTERMEDIATE_CERTIFICATE}; put the two that "
        "belong together there"
    )


def _next_key_of(directory: Path, cert: x509.Certificate) -> FileKey | None:
    path = directory / NEXT_KEY
    return read_key(path) if is_key_of(path, cert) else None


def is_key_of(path: Path, cert: x509.Certificate) -> bool:
    """Whether a file holds the certificate's key, and can be used."""
    try:
        return belong_together(read_key(path), cert)
    except AuthorityError:
        return False


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Nobody else changes the directory meanwhile, and what a former change left undone is done. AuthorityError."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AuthorityError(f"cannot use the CA in {directory}: {error.strerror or error}; {REMEDY}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AuthorityError(
                f"somebody else changes the CA in {directory} now; try again when that is done"
            ) from None
        settle(directory)
        yield
    finally:
        os.close(descriptor)


def settle(directory: Path) -> None:
    """Moves the next key to its place when the next certificate is in its own. Raises AuthorityError."""
    try:
        (cert, *_above) = read_certificates(directory / INTERMEDIATE_CERTIFICATE)
    except AuthorityError:
        return
    if _next_key_of(directory, cert) is None:
        return
    try:
        (directory / NEXT_KEY).replace(directory / INTERMEDIATE_KEY)
        directories.sync(directory)
    except OSError as error:
        raise cannot_write(directory, error) from error


def write(directory: Path, name: str, data: bytes) -> None:
    """Puts a file there whole or not at all, with mode 0600 if it is a key and 0644 if not. Raises AuthorityError."""
    beside = directory / f".{name}.new"
    try:
        # What a process that was ended left may belong to anybody.
        beside.unlink(missing_ok=True)
        create(beside, data, 0o600 if name.endswith(".key") else 0o644)
        beside.replace(directory / name)
        directories.sync(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise cannot_write(directory, error) from error


def create(path: Path, data: bytes, mode: int) -> None:
    """A new file, on the disk when this returns, of whoever has the directory. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        keep_owner(descriptor, path.parent)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def stamp(directory: Path) -> Stamp:
    """Another one when what an agent or a service signs by has been replaced; a file that cannot be seen has zeros."""
    stamps = []
    for name in (ROOT_CERTIFICATE, INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY):
        try:
            status = (directory / name).stat()
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def cannot_write(directory: Path, error: OSError) -> AuthorityError:
    """For a write that failed."""
    return AuthorityError(f"cannot write the CA in {directory}: {error.strerror or error}; name another place")
