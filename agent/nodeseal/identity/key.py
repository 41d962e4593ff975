"""Private keys of workloads: made on this node, in memory that is locked and left out of core dumps, and wiped there.

A key is an object of OpenSSL's, see cext/include/nodeseal_keys.h. Its bytes never become a Python object, for Python
cannot wipe one: a core gets them in a descriptor. The exceptions are `read` (what others made has been elsewhere
anyway) and `pem` (for cores of former versions, and for the one key that a node keeps in a file).

What holds the last reference to a key holds it in memory: it is wiped when that goes.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from nodeseal._keys import ffi, lib
from nodeseal.contracts.key_kind import KeyKind

log = logging.getLogger("nodeseal.agent")

_ERROR_SIZE = 256
_ENCODED_MAX = 4096


class PrivateKeyError(Exception):
    """A key could not be made, read or used. One line that holds nothing made of a key."""


_NUMBERS = {KeyKind.P256: lib.NS_KEY_P256, KeyKind.P384: lib.NS_KEY_P384, KeyKind.ED25519: lib.NS_KEY_ED25519}


class PrivateKey:
    """One key. Two are equal when they are the same object. It cannot be copied, pickled or shown."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Any) -> None:
        """Of `generate` and `read` only."""
        self._handle = ffi.gc(handle, lib.key_free)

    @classmethod
    def generate(cls, kind: KeyKind = KeyKind.P256) -> PrivateKey:
        """A fresh one: a tenth of a millisecond (P-384: half of one). Raises PrivateKeyError."""
        _begin()
        return cls(_made(lambda *error: lib.key_new(_NUMBERS[kind], *error)))

    @classmethod
    def read(cls, data: bytes | bytearray | memoryview) -> PrivateKey:
        """One that somebody else made: PEM or PKCS 8, not encrypted, also RSA. Raises PrivateKeyError."""
        _begin()
        return cls(_made(lambda *error: lib.key_read(ffi.from_buffer(data), len(data), *error)))

    @property
    def public(self) -> bytes:
        """The public key: SubjectPublicKeyInfo in DER. Raises PrivateKeyError."""
        return _encoded(lambda *out: lib.key_public(self._handle, *out))

    def request(self, uri: str) -> bytes:
        """A certificate request (PKCS 10) in PEM, signed by this key: no subject, `uri` as the only name. Raises
        PrivateKeyError."""
        encoded = _encoded(lambda *out: lib.key_request(self._handle, uri.encode(), *out))
        return _pem("CERTIFICATE REQUEST", encoded)

    @contextlib.contextmanager
    def exported(self) -> Iterator[int]:
        """A descriptor that holds the key as PKCS 8 in DER, to be sent within the context: a memfd that can no longer
        change. Raises PrivateKeyError."""
        error = ffi.new("char[]", _ERROR_SIZE)
        fd = lib.key_export(self._handle, error, _ERROR_SIZE)
        if fd < 0:
            raise PrivateKeyError(_line(error))
        try:
            yield fd
        finally:
            os.close(fd)

    def pem(self) -> str:
        """PKCS 8 in PEM, as a Python text that stays in memory until it is overwritten: see the module's text."""
        with self.exported() as fd:
            return _pem("PRIVATE KEY", os.pread(fd, os.fstat(fd).st_size, 0)).decode()

    def __repr__(self) -> str:
        return "PrivateKey(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not to be copied")


_protected: int | None = None


def _begin() -> None:
    """Makes OpenSSL's secure heap, once, and says so when there is none."""
    global _protected
    if _protected is None:
        _protected = lib.keys_begin()
        if _protected != 1:
            log.warning("private keys are in memory that may be swapped out: it cannot be locked (mlock(2))")


def _made(make: Callable[..., Any]) -> Any:
    error = ffi.new("char[]", _ERROR_SIZE)
    handle = make(error, _ERROR_SIZE)
    if handle == ffi.NULL:
        raise PrivateKeyError(_line(error))
    return handle


def _encoded(encode: Callable[..., int]) -> bytes:
    """Nothing secret."""
    out, error = ffi.new("uint8_t[]", _ENCODED_MAX), ffi.new("char[]", _ERROR_SIZE)
    size = encode(out, _ENCODED_MAX, error, _ERROR_SIZE)
    if not size:
        raise PrivateKeyError(_line(error))
    return bytes(ffi.buffer(out, size))


def _line(error: Any) -> str:
    return " ".join(bytes(ffi.string(error)).decode("utf-8", "replace").split())


def _pem(label: str, encoded: bytes) -> bytes:
    body = base64.encodebytes(encoded).replace(b"\n", b"")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join([b"-----BEGIN %s-----" % label.encode(), *lines, b"-----END %s-----" % label.encode(), b""])
