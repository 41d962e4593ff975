"""OpenSSL as this machine has it: the library, and the provider of its cryptography (provider(7), fips_module(7)).

Both are asked of the library that the core uses, by its own functions. What a provider is called and which version it
says it has is all that can be known here: whether a module has been validated is not.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any

_LIBCRYPTO = "libcrypto.so.3"
_INCLUDE = re.compile(r"^\s*\.include\s*=?\s*(\S+)", re.MULTILINE)
_LOAD_CRYPTO_STRINGS = 2  # OPENSSL_INIT_LOAD_CRYPTO_STRINGS: reasons of errors


class OpenSSLError(Exception):
    """The library, or its provider, cannot be used; one line."""


class _Param(ctypes.Structure):
    """OSSL_PARAM(3)."""

    _fields_ = (
        ("key", ctypes.c_char_p),
        ("data_type", ctypes.c_uint),
        ("data", ctypes.c_void_p),
        ("data_size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    )


def library_version() -> str:
    """ "OpenSSL 3.0.19". Raises OpenSSLError."""
    text: bytes = _library().OpenSSL_version(0)
    match = re.match(r"OpenSSL \S+", text.decode())
    return match[0] if match else text.decode()


def configuration_files() -> list[Path]:
    """Those of its configuration that are there: the first one, and all that it includes (config(5)). Raises
    OpenSSLError."""
    found: list[Path] = []
    waiting = [Path(os.fsdecode(_default_config(_library())))]
    while waiting:
        path = waiting.pop(0)
        if path.is_dir():
            waiting += sorted(one for one in path.iterdir() if one.suffix in (".cnf", ".conf"))
        elif path.is_file() and path not in found:
            found.append(path)
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            waiting += [path.parent / name for name in _INCLUDE.findall(text)]
    return found


def modules_directory() -> Path:
    """Where its modules are, unless OPENSSL_MODULES says otherwise. Raises OpenSSLError."""
    if given := os.environ.get("OPENSSL_MODULES"):
        return Path(given)
    text: bytes = _library().OpenSSL_version(8)  # OPENSSL_MODULES_DIR: 'MODULESDIR: "/usr/lib/.../ossl-modules"'
    match = re.search(r'"(.*)"', text.decode())
    if match is None:
        raise OpenSSLError(f"OpenSSL does not say where its files are, but {text.decode()!r}")
    return Path(match[1])


def provider(*, fips: bool) -> str:
    """The provider that does the cryptography of TLS, by the name and version that it says itself, as in "OpenSSL FIPS
    Provider 3.0.9". `fips`: with the profile of that name. Raises OpenSSLError with why it cannot be loaded."""
    library = _library()
    context = ctypes.c_void_p(library.OSSL_LIB_CTX_new())
    try:
        if fips:
            library.OSSL_LIB_CTX_load_config(context, _default_config(library))
        loaded = ctypes.c_void_p(library.OSSL_PROVIDER_load(context, b"fips" if fips else b"default"))
        if not loaded:
            what = "OpenSSL's FIPS module" if fips else "OpenSSL's default provider"
            raise OpenSSLError(f"{what} cannot be loaded: {_reason(library)}")
        name, version = (_told(library, loaded, key) for key in (b"name", b"version"))
        library.OSSL_PROVIDER_unload(loaded)
        return f"{name} {version}"
    finally:
        library.OSSL_LIB_CTX_free(context)


def _library() -> Any:
    try:
        library = ctypes.CDLL(_LIBCRYPTO)
    except OSError:
        raise OpenSSLError(f"{_LIBCRYPTO} cannot be loaded: apt-get install libssl3") from None
    library.OPENSSL_init_crypto(ctypes.c_uint64(_LOAD_CRYPTO_STRINGS), None)
    library.OpenSSL_version.restype = ctypes.c_char_p
    library.ERR_reason_error_string.restype = ctypes.c_char_p
    library.ERR_reason_error_string.argtypes = (ctypes.c_ulong,)
    library.ERR_peek_error.restype = ctypes.c_ulong
    library.CONF_get1_default_config_file.restype = ctypes.c_void_p
    for maker in (library.OSSL_LIB_CTX_new, library.OSSL_PROVIDER_load):
        maker.restype = ctypes.c_void_p
    return library


def _default_config(library: Any) -> bytes:
    path = library.CONF_get1_default_config_file()
    try:
        return ctypes.string_at(path)
    finally:
        library.CRYPTO_free(ctypes.c_void_p(path), b"", 0)


def _reason(library: Any) -> str:
    reason: bytes | None = library.ERR_reason_error_string(library.ERR_peek_error())
    library.ERR_clear_error()
    return reason.decode() if reason else "no reason is given"


def _told(library: Any, loaded: ctypes.c_void_p, key: bytes) -> str:
    """A text that the provider says of itself; its storage is the provider's."""
    text = ctypes.c_char_p()
    utf8_pointer = 6  # OSSL_PARAM_UTF8_PTR of openssl/core.h
    where = ctypes.cast(ctypes.pointer(text), ctypes.c_void_p)
    params = (_Param * 2)(_Param(key, utf8_pointer, where, 0, 0), _Param())
    if library.OSSL_PROVIDER_get_params(loaded, params) != 1 or text.value is None:
        return "unknown"
    return text.value.decode()
