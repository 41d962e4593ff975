"""Parts of what builds the image. Building it takes minutes: `make image TWICE=1` also compares two builds."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tools import image

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "deploy" / "image"
STATUS = """Package: libssl3t64
Status: install ok installed
Maintainer: Debian OpenSSL Team <team@example.org>
Architecture: amd64
Version: 3.5.1-1+deb13u1
Description: libraries
 of several lines

Package: apt
Status: deinstall ok config-files
Architecture: amd64
Version: 3.0
"""


def archive(path: Path, files: dict[str, bytes]) -> str:
    """An OCI archive with one layer; its digest."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as layer:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            layer.addfile(entry, io.BytesIO(data))
    packed = gzip.compress(plain.getvalue(), mtime=0)
    with tarfile.open(path, "w") as outer:

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            outer.addfile(entry, io.BytesIO(data))

        def blob(data: bytes) -> dict[str, Any]:
            digest = hashlib.sha256(data).hexdigest()
            add(f"blobs/sha256/{digest}", data)
            return {"digest": f"sha256:{digest}", "size": len(data)}

        manifest = blob(json.dumps({"layers": [blob(packed)]}).encode())
        add("index.json", json.dumps({"manifests": [manifest]}).encode())
    digest: str = manifest["digest"]
    return digest


def test_archive_says_what_is_in_it(tmp_path: Path) -> None:
    digest = archive(tmp_path / "a.tar", {"bin/x": b"12345", image.SBOM: b"{}"})
    found = image.look(tmp_path / "a.tar")
    assert (found.digest, found.unpacked, found.sbom) == (digest, 7, b"{}")
    assert found.packed > 0


def test_archive_without_a_list_of_what_is_in_it_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "a.tar", {"bin/x": b"12345"})
    with pytest.raises(image.ImageError, match=r"sbom\.spdx\.json is missing"):
        image.look(tmp_path / "a.tar")


def test_files_that_differ_are_named(tmp_path: Path) -> None:
    archive(tmp_path / "a.tar", {"same": b"1", "other": b"1", "gone": b"1"})
    archive(tmp_path / "b.tar", {"same": b"1", "other": b"2", "new": b"1"})
    assert image.differing(tmp_path / "a.tar", tmp_path / "b.tar") == ["gone", "new", "other"]


def test_list_has_debian_s_packages_and_python_s(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS)
    source = (IMAGE / "sbom.py").read_text().replace('"/var/lib/dpkg/status"', repr(str(status)))
    script = tmp_path / "sbom.py"
    script.write_text(source)
    written = [
        subprocess.run(
            [sys.executable, str(script)],
            env={"SOURCE_DATE_EPOCH": "0", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert written[0] == written[1]
    read = json.loads(written[0])
    references = [one["externalRefs"][0]["referenceLocator"] for one in read["packages"]]
    assert "pkg:deb/debian/libssl3t64@3.5.1-1%2Bdeb13u1?arch=amd64" in references
    assert not [one for one in references if "/apt@" in one]
    assert [one for one in references if one.startswith("pkg:pypi/cryptography@")]
    identities = [one["SPDXID"] for one in read["packages"]]
    assert len(set(identities)) == len(identities)
    assert read["creationInfo"]["created"] == "1970-01-01T00:00:00Z"


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (IMAGE / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_every_package_has_a_digest(name: str) -> None:
    text = (IMAGE / name).read_text()
    assert len(re.findall(r"==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text)) == len(pins(name))


def test_image_has_what_the_package_asks_for() -> None:
    """`python -m tools.image_requirements` writes them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name, wanted in (
        ("requirements.txt", project["project"]["dependencies"]),
        ("requirements-build.txt", project["build-system"]["requires"]),
    ):
        there = pins(name)
        for one in wanted:
            package, _, least = one.partition(">=")
            version = there[package.lower().replace("_", "-")]
            assert numbers(version) >= numbers(least), one


def numbers(version: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", version)]
