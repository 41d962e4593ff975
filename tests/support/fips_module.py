"""OpenSSL's FIPS module for a test: a configuration that activates the module of this machine, if it has one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_SECONDS = 60


def module() -> Path | None:
    """The module's file, beside the library's other ones; None: this machine has none (Debian 12)."""
    said = subprocess.run(["openssl", "version", "-m"], capture_output=True, text=True, check=True, timeout=_SECONDS)
    match = re.search(r'MODULESDIR: "(.+)"', said.stdout)
    assert match is not None, said.stdout
    path = Path(match[1]) / "fips.so"
    return path if path.exists() else None


def configuration(directory: Path) -> Path | None:
    """An openssl.cnf for OPENSSL_CONF, as fips_module(7) has it, for whatever wants the module beside what is usual;
    None: there is no module. The module tests itself meanwhile."""
    path = module()
    if path is None:
        return None
    installed = directory / "fipsmodule.cnf"
    subprocess.run(
        ["openssl", "fipsinstall", "-out", installed, "-module", path],
        capture_output=True,
        check=True,
        timeout=_SECONDS,
    )
    config = directory / "openssl.cnf"
    config.write_text(
        "openssl_conf = openssl_init\n"
        f".include {installed}\n"
        "[openssl_init]\nproviders = provider_sect\n"
        "[provider_sect]\nfips = fips_sect\nbase = base_sect\ndefault = default_sect\n"
        "[base_sect]\nactivate = 1\n"
        "[default_sect]\nactivate = 1\n"
    )
    return config
