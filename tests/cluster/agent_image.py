"""An image of nodeseal as it is in this checkout, made in seconds: for trying what was just written in a cluster.

It has Debian 12, the libraries and the compiler for BPF that a node without an image has, and the distributions that
nodeseal needs out of this Python's own environment. What is shipped is another one, see deploy/.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from cluster.errors import ClusterError
from cluster.images import base_layer, layer_of, write_image

IMAGE = "nodeseal.test/nodeseal:checkout"
_PACKAGES = (
    "ca-certificates,iproute2,iptables,libnghttp2-14,libssl3,linux-libc-dev,nftables,procps,python3,python3-bpfcc,"
    "util-linux"
)
_CHECKOUT = Path(__file__).resolve().parents[2]
SITE = "usr/local/lib/python3.11/dist-packages"
"""Where Debian's Python looks for what Debian did not install."""

_COMMAND = b"#!/usr/bin/python3\nimport sys\n\nfrom nodeseal.cli.main import main\n\nsys.exit(main())\n"


def agent_image() -> Path:
    """The archive. Raises ClusterError."""
    layers, config = agent_layers()
    return write_image("nodeseal", IMAGE, layers, config)


def agent_layers() -> tuple[list[bytes | Path], dict[str, list[str]]]:
    """What it is made of, for write_image(). Raises ClusterError."""
    files = dict(_distribution_files("nodeseal"))
    own = _CHECKOUT / "agent" / "nodeseal"
    # The programs for BPF are behind a symbolic link, as the chart is.
    found = [Path(directory, name) for directory, _, names in os.walk(own, followlinks=True) for name in names]
    sources = [path for path in found if "__pycache__" not in path.parts]
    if not any(path.suffix == ".so" for path in sources):
        raise ClusterError(f"{own} has no C core: build it with: python setup.py build_ext --inplace")
    files |= {f"{SITE}/nodeseal/{path.relative_to(own)}": _file(path) for path in sources}
    files["usr/local/bin/nodeseal"] = (_COMMAND, 0o755)
    config = {"Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": ["nodeseal"]}
    return [base_layer(_PACKAGES), layer_of(files)], config


def _distribution_files(name: str) -> Iterator[tuple[str, tuple[bytes, int]]]:
    """What the requirements of a distribution have installed, and theirs. Raises ClusterError."""
    waiting, seen = [name], {name}
    while waiting:
        try:
            one = distribution(waiting.pop())
        except PackageNotFoundError as error:
            raise ClusterError(f"{error.name} is not installed, which nodeseal needs: make install") from error
        for text in one.requires or []:
            wanted = Requirement(text)
            if (wanted.marker is None or wanted.marker.evaluate({"extra": ""})) and wanted.name not in seen:
                seen.add(wanted.name)
                waiting.append(wanted.name)
        if one.name != name:
            yield from _installed(one)


def _installed(one: Distribution) -> Iterator[tuple[str, tuple[bytes, int]]]:
    for path in one.files or []:
        source = Path(str(path.locate()))
        if ".." not in path.parts and "__pycache__" not in path.parts and source.is_file():
            yield f"{SITE}/{path}", _file(source)


def _file(path: Path) -> tuple[bytes, int]:
    return path.read_bytes(), path.stat().st_mode & 0o755
