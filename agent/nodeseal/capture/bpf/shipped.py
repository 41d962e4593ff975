"""The compiled BPF programs that an installation carries, so that its nodes need no compiler.

`python -m nodeseal.capture.bpf.shipped` compiles them where bcc is, and puts them beside the package: an image is built
with it. They count as long as the sources beside them and the way in which these are compiled are the same.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from nodeseal.capture.bpf import cache, compile, sources
from nodeseal.capture.bpf.compile import Compiled
from nodeseal.capture.errors import CaptureError

FILE_NAME = "bpf-programs.json"


def load() -> Compiled | None:
    """None when there are none, or they are of other sources. Raises CaptureError."""
    return cache.read(_path(), _made_of())


def main() -> int:
    """Makes them; the exit status."""
    path = _path()
    try:
        cache.write(path, _made_of(), compile.compile_all(sources.source_directory()), mode=0o644)
    except (CaptureError, OSError) as error:
        print(f"cannot make {path}: {error}", file=sys.stderr)
        return 1
    return 0


def _path() -> Path:
    return sources.source_directory().parent / FILE_NAME


def _made_of() -> str:
    way = Path(compile.__file__).read_bytes()
    return hashlib.sha256(cache.of_sources().encode() + way).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
