"""The compiled BPF programs, kept in the run directory: an agent that starts again need not wait for the compiler.

Compiling takes well over a second, in which an agent that starts again adopts nothing. The file names what it was
compiled from; with other sources, or another compiler, it is compiled anew. It is code for the kernel: a file that
anybody but root could have written is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import stat
from collections.abc import Callable
from pathlib import Path

from nodeseal.capture.bpf import sources
from nodeseal.capture.bpf.compile import Compiled

FILE_NAME = "programs.json"


def load_or_compile(run_dir: Path, compile_sources: Callable[[], Compiled]) -> Compiled:
    """The programs as kept in the run directory, or compiled and then kept. Raises CaptureError."""
    path = run_dir / FILE_NAME
    wanted = fingerprint()
    kept = read(path, wanted)
    if kept is not None:
        return kept
    compiled = compile_sources()
    with contextlib.suppress(OSError):  # it is only time that would be saved
        write(path, wanted, compiled)
    return compiled


def remove(run_dir: Path) -> bool:
    """Forgets the kept programs. False when there were none. Raises OSError."""
    path = run_dir / FILE_NAME
    path.with_suffix(".new").unlink(missing_ok=True)
    if not path.exists():
        return False
    path.unlink()
    return True


def fingerprint() -> str:
    """What the programs depend on, as one word: the sources, the compiler, the machine type. Raises CaptureError."""
    digest = hashlib.sha256(of_sources().encode())
    compiler = importlib.util.find_spec("bcc")
    if compiler is not None and compiler.origin is not None:
        status = Path(compiler.origin).stat()
        digest.update(f"{compiler.origin} {status.st_mtime_ns} {status.st_size}".encode())
    return digest.hexdigest()


def of_sources() -> str:
    """The same without the compiler. Raises CaptureError."""
    digest = hashlib.sha256(platform.machine().encode())
    directory = sources.source_directory()
    for path in sources.files(directory):
        digest.update(bytes(path.relative_to(directory)) + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def read(path: Path, wanted: str) -> Compiled | None:
    """What a file has that was compiled from `wanted`; None when it is not there, another's, or damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(fd, encoding="utf-8") as stream:
            status = os.fstat(fd)
            if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o022:
                return None
            value = json.load(stream)
        if value["compiled_from"] != wanted:
            return None
        return Compiled.from_json(json.dumps(value["compiled"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or damaged: it is made anew


def write(path: Path, wanted: str, compiled: Compiled, mode: int = 0o600) -> None:
    """Whole or not at all. Raises OSError."""
    draft = path.with_suffix(".new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        stream.write(json.dumps({"compiled_from": wanted, "compiled": json.loads(compiled.to_json())}))
    draft.replace(path)
