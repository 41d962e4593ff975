"""Images without a registry: docker archives, made from files, kept in the cache by what they are made of.

The format: manifest.json, a configuration and layers in a tar file (github.com/moby/docker-image-spec).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError, CommandError, MissingProgramError
from cluster.programs import run
from cluster.settings import PAUSE_IMAGE

CACHE = Path(os.environ.get("NODESEAL_IMAGES") or Path.home() / ".cache" / "nodeseal" / "images")
APPS_IMAGE = "nodeseal.test/apps:1"

_APPS = (Path(__file__).resolve().parents[2] / "lab" / "nodeseal_lab" / "apps", Path(__file__).with_name("apps"))
APPS_PACKAGES = "python3-minimal,libpython3-stdlib,curl,iproute2,procps,busybox-static"
_SUITE = "bookworm"
_KEPT_SECONDS = 7 * 86400.0
_UNNEEDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/var/cache/*", "/var/lib/apt/*")

# The holder of a pod's namespaces: it reaps what is left to it, and ends when it is told to.
_PAUSE = r"""
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) { _exit(number ? 0 : 1); }
static void reap(int number) { while (waitpid(-1, NULL, WNOHANG) > 0) (void)number; }

int main(void) {
  struct sigaction ends = {.sa_handler = end}, reaps = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  if (sigaction(SIGTERM, &ends, NULL) || sigaction(SIGINT, &ends, NULL) || sigaction(SIGCHLD, &reaps, NULL)) return 1;
  for (;;) pause();
}
"""


def pause_image() -> Path:
    """The archive of what every pod begins with. Raises ClusterError."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "pause")
        try:
            run(["gcc", "-Os", "-static", "-s", "-x", "c", "-", "-o", program], text=_PAUSE)
        except FileNotFoundError:
            raise MissingProgramError("gcc", "install it with: apt-get install gcc libc6-dev") from None
        layer = layer_of({"pause": (program.read_bytes(), 0o755)})
    return write_image("pause", PAUSE_IMAGE, [layer], {"Entrypoint": ["/pause"]})


def apps_image() -> Path:
    """The programs of the lab's pods, on a small Debian with Python, curl and ip. Raises ClusterError."""
    sources = [path for directory in _APPS for path in directory.glob("*.py") if path.name != "__init__.py"]
    files = {f"apps/{path.name}": (path.read_bytes(), 0o644) for path in sources}
    environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED=1"]
    config = {"Env": environment, "Cmd": ["/bin/sh"]}
    return write_image("apps", APPS_IMAGE, [base_layer(APPS_PACKAGES), layer_of(files)], config)


def layer_of(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """A layer of files, {path: (content, mode)}: the same bytes each time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (content, mode) in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def archive_of(image: str, layers: Sequence[bytes], config: Mapping[str, Any]) -> bytes:
    """A docker archive. `config`: Entrypoint, Cmd, Env as in a Dockerfile."""
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    description = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
    }
    told = json.dumps(description).encode()
    name = f"{hashlib.sha256(told).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [image], "Layers": [f"{digest}/layer.tar" for digest in digests]}]
    files = {"manifest.json": (json.dumps(manifest).encode(), 0o644), name: (told, 0o644)}
    files |= {f"{digest}/layer.tar": (layer, 0o644) for digest, layer in zip(digests, layers, strict=True)}
    return layer_of(files)


def name_of(archive: Path) -> str:
    """What the image in an archive is called: "docker.io/library/nodeseal:0.1.0". Raises ClusterError."""
    try:
        with tarfile.open(archive) as tar:
            names = tar.getnames()
            file = tar.extractfile("manifest.json" if "manifest.json" in names else "index.json")
            assert file is not None
            described = json.load(file)
        if isinstance(described, list):
            return str(described[0]["RepoTags"][0])
        return str(described["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"])
    except (OSError, tarfile.TarError, ValueError, LookupError, TypeError) as error:
        raise ClusterError(f"{archive} is no archive of an image with a name: {error}") from error


def base_layer(packages: str) -> Path:
    """A Debian with these packages (with commas between them), made once. Raises ClusterError."""
    path = CACHE / f"debian-{_digest(_SUITE.encode(), packages.encode(), *map(str.encode, _UNNEEDED))}.tar"
    if path.exists():
        _keep(path)
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.tar")
    excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in _UNNEEDED[:3]]
    removed = [f'--customize-hook=rm -rf "$1"{pattern}' for pattern in _UNNEEDED[3:]]
    argv: list[str | Path] = [
        "mmdebstrap",
        "--quiet",
        "--variant=essential",
        f"--include={packages}",
        *excludes,
        *removed,
        _SUITE,
        beside,
    ]
    try:
        run(argv, environment={"SOURCE_DATE_EPOCH": "0"}, seconds=900)
        beside.replace(path)
    except FileNotFoundError:
        raise MissingProgramError("mmdebstrap", "install it with: apt-get install mmdebstrap") from None
    except (CommandError, subprocess.TimeoutExpired):
        beside.unlink(missing_ok=True)
        raise
    return path


def write_image(name: str, image: str, layers: Sequence[bytes | Path], config: Mapping[str, Any]) -> Path:
    """The archive of an image of these layers, in the cache."""
    parts = [layer.name.encode() if isinstance(layer, Path) else layer for layer in layers]
    path = CACHE / f"{name}-{_digest(json.dumps(config).encode(), *parts)}.tar"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        contents = [layer.read_bytes() if isinstance(layer, Path) else layer for layer in layers]
        beside.write_bytes(archive_of(image, contents, config))
        beside.replace(path)
    _keep(path)
    return path


def _keep(used: Path) -> None:
    """It was used now; removes what nobody has used for days."""
    used.touch()
    oldest = time.time() - _KEPT_SECONDS
    for path in CACHE.glob("*.tar"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
