"""Builds the image where there is neither a registry nor a Docker engine: `python -m tools.image ARCHIVE`.

The Containerfile begins with debian:trixie-slim. Here mmdebstrap makes that of Debian's packages, and buildah builds
the same Containerfile upon it. The archive is an OCI one: `ctr -n k8s.io images import ARCHIVE`, `skopeo copy
oci-archive:ARCHIVE docker://...`. Beside it is the list of what is in the image.

With --twice everything is built twice, from nothing, and has to have one digest: as long as Debian has the same
packages, which are the one thing that is not pinned here. Needs root, mmdebstrap and buildah; nothing is left outside
of the working directory.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nodeseal import __version__

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "image"
CONTAINERFILE = "deploy/image/Containerfile"
SUITE, MIRROR = "trixie", "http://deb.debian.org/debian"
BASE = "localhost/nodeseal-base"
NAME = f"docker.io/library/nodeseal:{__version__}"
"""As a kubelet completes the image nodeseal:VERSION."""
SBOM = "usr/share/nodeseal/sbom.spdx.json"
_SHOWN = 20
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class ImageError(Exception):
    """The image cannot be built; one line."""


@dataclass(frozen=True, slots=True)
class Image:
    """What an archive has. Sizes in bytes."""

    digest: str
    packed: int
    unpacked: int
    sbom: bytes


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.image")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--name", default=NAME, help="the image's name and tag (default: %(default)s)")
    parser.add_argument("--twice", action="store_true", help="build it twice, and compare")
    given = parser.parse_args(arguments)
    try:
        context, epoch = _context(WORK / "context"), _epoch()
        image = build(context, epoch, WORK / "1", given.archive, given.name, fresh=given.twice)
        if given.twice:
            other = given.archive.with_suffix(".second")
            second = build(context, epoch, WORK / "2", other, given.name, fresh=True)
            if second.digest != image.digest:
                names = differing(other, given.archive)
                text = f"two builds differ, {given.archive} and {other}, in {len(names)} files"
                raise ImageError(f"{text}: {', '.join(names[:_SHOWN])}")
            other.unlink()
        given.archive.with_suffix(".spdx.json").write_bytes(image.sbom)
    except FileNotFoundError as error:
        print(f"{error.filename} is missing: apt-get install mmdebstrap buildah", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd[:8]))} ... failed with status {error.returncode}", file=sys.stderr)
        return 1
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    sizes = f"{image.packed / 1e6:.1f} MB, {image.unpacked / 1e6:.1f} MB unpacked"
    print(f"{given.archive}: {given.name}, {image.digest}, {sizes}{', the same twice' if given.twice else ''}")
    return 0


def build(context: Path, epoch: str, work: Path, archive: Path, name: str, *, fresh: bool) -> Image:
    """`context`: the sources; `epoch`: the time of all files, in seconds since 1970; `fresh`: nothing of a former build
    is used. Raises FileNotFoundError, CalledProcessError, ImageError."""
    if fresh:
        _remove(work)
    work.mkdir(parents=True, exist_ok=True)
    base = work / "base.tar"
    # Of one time for all commits, so that it need not be made anew.
    if not base.exists():
        draft = base.with_suffix(".new.tar")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", SUITE, str(draft), MIRROR]
        subprocess.run(command, env={**os.environ, "SOURCE_DATE_EPOCH": "1764547200"}, check=True)
        draft.rename(base)
    buildah = [
        "buildah", "--root", str(work / "storage"), "--runroot", str(work / "run"), "--storage-driver", "vfs"
    ]  # fmt: skip
    try:
        _import_base(buildah, base)
        command = [*buildah, "build", "--isolation", "chroot", "--layers=false", "--pull-never", "--timestamp", epoch]
        command += ["--build-arg", f"BASE={BASE}", "--build-arg", f"SOURCE_DATE_EPOCH={epoch}"]
        if _CERTIFICATES.is_file():
            # By what this machine knows the package index.
            command += ["--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"]
        command += ["--file", str(context / CONTAINERFILE), "--tag", name, str(context)]
        with (work / "log").open("wb") as log:
            done = subprocess.run(command, stdout=log, stderr=log, check=False)
        if done.returncode != 0:
            raise ImageError(f"the build failed: {(work / 'log').read_text(errors='replace')[-2000:]}")
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.unlink(missing_ok=True)
        subprocess.run([*buildah, "push", "--quiet", name, f"oci-archive:{archive}:{name}"], check=True)
    finally:
        _remove(work / "storage")
    return look(archive)


def _remove(directory: Path) -> None:
    """What a build that was killed has left mounted in it stays."""
    subprocess.run(["rm", "-rf", "--one-file-system", str(directory)], check=True)


def _import_base(buildah: list[str], base: Path) -> None:
    made = subprocess.run([*buildah, "from", "scratch"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([*buildah, "add", "--quiet", made, str(base), "/"], stdout=subprocess.DEVNULL, check=True)
    subprocess.run([*buildah, "commit", "--quiet", made, BASE], stdout=subprocess.DEVNULL, check=True)
    subprocess.run([*buildah, "rm", made], stdout=subprocess.DEVNULL, check=True)


def _epoch() -> str:
    """The time of the latest commit."""
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _context(directory: Path) -> Path:
    """The files that git knows or would add."""
    shutil.rmtree(directory, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, directory / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)
            if not source.is_symlink():
                target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    return directory


def look(archive: Path) -> Image:
    """Raises ImageError."""
    unpacked, sbom = 0, b""
    with tarfile.open(archive) as outer:
        index = json.load(_member(outer, "index.json"))
        (described,) = index["manifests"]
        manifest = json.load(_blob(outer, described))
        for layer in manifest["layers"]:
            with gzip.open(_blob(outer, layer)) as plain, tarfile.open(fileobj=plain, mode="r|") as inner:
                for entry in inner:
                    unpacked += entry.size
                    if entry.name.lstrip("./") == SBOM:
                        file = inner.extractfile(entry)
                        assert file is not None
                        sbom = file.read()
    if not sbom:
        raise ImageError(f"{archive}: {SBOM} is missing")
    return Image(described["digest"], sum(layer["size"] for layer in manifest["layers"]), unpacked, sbom)


def differing(*archives: Path) -> list[str]:
    """The files that are not the same in both."""
    first, second = (dict(_contents(one)) for one in archives)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _contents(archive: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    with tarfile.open(archive) as outer:
        (described,) = json.load(_member(outer, "index.json"))["manifests"]
        for layer in json.load(_blob(outer, described))["layers"]:
            with gzip.open(_blob(outer, layer)) as plain, tarfile.open(fileobj=plain, mode="r|") as inner:
                for entry in inner:
                    file = inner.extractfile(entry) if entry.isreg() else None
                    digest = hashlib.sha256(file.read()).hexdigest() if file is not None else entry.linkname
                    yield entry.name, (digest, entry.mode, entry.uid, entry.gid, entry.mtime, entry.type)


def _blob(outer: tarfile.TarFile, descriptor: dict[str, Any]) -> IO[bytes]:
    return _member(outer, f"blobs/{descriptor['digest'].replace(':', '/')}")


def _member(outer: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        file = outer.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ImageError(f"{outer.name!r} is no archive of an OCI image: {name} is missing")
    return file


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
