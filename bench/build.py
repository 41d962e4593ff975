"""The C programs of the bench, compiled when their sources are newer."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

SOURCES = Path(__file__).parent
CHECKOUT = SOURCES.parent
BUILD = CHECKOUT / "build"
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread")


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the compiled programs are."""

    load: Path
    serve: Path
    relay: Path


def build_programs(directory: Path = BUILD / "bench") -> Programs:
    """Compiles what is out of date into `directory`. Raises BenchError with the compiler's message."""
    directory.mkdir(parents=True, exist_ok=True)
    return Programs(*(_compile(name, directory) for name in ("load", "serve", "relay")))


def _compile(name: str, directory: Path) -> Path:
    source, header, program = SOURCES / f"{name}.c", SOURCES / "exchange.h", directory / name
    newest = max(source.stat().st_mtime, header.stat().st_mtime)
    if program.exists() and program.stat().st_mtime >= newest:
        return program
    if shutil.which("gcc") is None:
        raise BenchError("gcc is missing: apt-get install gcc libc6-dev")
    done = subprocess.run(
        ["gcc", *_FLAGS, "-o", str(program), str(source)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"cannot compile {source}: {done.stderr.strip()}")
    return program
