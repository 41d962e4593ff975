"""The C programs of the bench, compiled when their sources are newer."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

SOURCES = Path(__file__).parent
CHECKOUT = SOURCES.parent
CORE = CHECKOUT / "cext"
BUILD = CHECKOUT / "build"
TRAFFIC = SOURCES / "instructions"
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
    _gcc(*_FLAGS, "-o", program, source)
    return program


def build_traffic(directory: Path, more: Sequence[str] = ()) -> Path:
    """The program of bench/instructions, with the core's sources in it, compiled as the extension is (with `more` after
    its flags) and with debug information. Raises BenchError with the compiler's message."""
    setup = runpy.run_path(str(CORE / "build_core.py"))
    directory.mkdir(parents=True, exist_ok=True)
    includes = (f"-I{CORE / 'include'}", f"-I{CORE / 'src'}", "-isystem", CHECKOUT / "tests" / "cext")
    sources = [*sorted((CORE / "src").rglob("*.c")), *sorted(TRAFFIC.glob("*.c"))]
    objects = [directory / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, output: Path) -> None:
        _gcc(*setup["COMPILE"], "-g", "-fPIC", *more, *includes, "-c", source, "-o", output)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    program = directory / "traffic"
    wraps = [f"-Wl,--wrap={name}" for name in _wrapped(directory / "kernel.o")]
    _gcc(*wraps, *objects, "-o", program, *(f"-l{name}" for name in setup["LIBRARIES"]))
    return program


def build_revoked(directory: Path = BUILD / "bench") -> Path:
    """bench/revoked.c, with the source that it measures compiled as the extension is. Raises BenchError."""
    return _build_with("revoked", [CORE / "src" / "wire" / "revoked.c"], directory)


def build_exchanges(directory: Path = BUILD / "bench") -> Path:
    """bench/exchanges.c, the same. Raises BenchError."""
    sources = (path for folder in ("base", "wire") for path in (CORE / "src" / folder).glob("*.c"))
    return _build_with("exchanges", sorted(sources), directory)


def _build_with(name: str, sources: Sequence[Path], directory: Path) -> Path:
    setup = runpy.run_path(str(CORE / "build_core.py"))
    directory.mkdir(parents=True, exist_ok=True)
    includes = (f"-I{CORE / 'include'}", f"-I{CORE / 'src'}", "-isystem", CHECKOUT / "tests" / "cext")
    program = directory / name
    libraries = (f"-l{library}" for library in setup["LIBRARIES"])
    _gcc(*setup["COMPILE"], *includes, SOURCES / f"{name}.c", *sources, "-o", program, *libraries)
    return program


def _wrapped(kernel: Path) -> list[str]:
    """The functions that the kernel in memory takes the place of: NAME for every __wrap_NAME that it defines."""
    done = subprocess.run(["nm", "--defined-only", str(kernel)], capture_output=True, text=True, check=True)
    symbols = (line.split()[-1] for line in done.stdout.splitlines())
    return [symbol.removeprefix("__wrap_") for symbol in symbols if symbol.startswith("__wrap_")]


def _gcc(*arguments: str | Path) -> None:
    if shutil.which("gcc") is None:
        raise BenchError("gcc is missing: apt-get install gcc libc6-dev")
    done = subprocess.run(["gcc", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"gcc cannot build {arguments[-1]}: {done.stderr.strip()}")
