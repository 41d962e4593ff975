"""What OpenSSL's library says of itself and its providers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nodeseal.linux import openssl
from nodeseal.linux.openssl import OpenSSLError


def test_library_and_default_provider_are_named_with_their_versions() -> None:
    version = openssl.library_version()
    assert re.fullmatch(r"OpenSSL 3\.\d+\.\d+", version)
    assert openssl.provider(fips=False) == f"OpenSSL Default Provider {version.removeprefix('OpenSSL ')}"


def test_fips_module_that_is_not_there_is_an_error_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))  # where it would be
    with pytest.raises(OpenSSLError, match=r"^OpenSSL's FIPS module cannot be loaded: [^\n]+$"):
        openssl.provider(fips=True)


def test_files_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").mkdir()
    first, second, third = tmp_path / "openssl.cnf", tmp_path / "fips.cnf", tmp_path / "more" / "a.cnf"
    first.write_text(f"openssl_conf = init\n.include {second}\n .include=more\n.include absent.cnf\n[init]\n")
    second.write_text(f".include {first}\n")  # round in a circle
    third.write_text("")
    (tmp_path / "more" / "README").write_text("")
    monkeypatch.setenv("OPENSSL_CONF", str(first))
    assert openssl.configuration_files() == [first, second, third]


def test_modules_are_where_openssl_looks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert openssl.modules_directory().name == "ossl-modules"
    monkeypatch.setenv("OPENSSL_MODULES", "/opt/modules")
    assert openssl.modules_directory() == Path("/opt/modules")
