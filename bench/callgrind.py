"""Runs the program of bench/instructions under valgrind's callgrind, and reads what it counted.

What differs between processors is fixed, so that the same instructions are counted everywhere: OpenSSL and the C
library choose their AES and copying routines by what the processor has. valgrind shows every processor with AVX2 as
the same one (a Haswell), and the environment says the rest.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError

PARTS = ("own", "openssl", "nghttp2", "libc", "other")
"""Where instructions are spent: the core's sources, libcrypto and libssl, libnghttp2, the C library, the rest."""

_ALLOCATING = frozenset({"malloc", "calloc", "realloc", "reallocarray", "aligned_alloc", "posix_memalign"})
_LIBRARIES = {"libcrypto.so": "openssl", "libssl.so": "openssl", "libnghttp2.so": "nghttp2", "libc.so": "libc"}
_PROCESSOR = frozenset({"aes", "pclmulqdq", "avx2", "bmi1", "bmi2", "fma", "movbe", "f16c"})
_SECONDS = 300
_LARGE = 1 << 30

_ENVIRONMENT = {
    "LC_ALL": "C",
    "OPENSSL_CONF": os.devnull,
    # CPUID leaf 1 (EDX, ECX) and leaf 7 (EBX) as OPENSSL_ia32cap(3) orders them: up to AES-NI, PCLMULQDQ, MOVBE, FMA
    # and AVX2 with BMI1 and BMI2, and neither RDRAND nor anything newer.
    "OPENSSL_ia32cap": "0x3ffaf3ffffebffff:0x128",
    # `rep movsb` is counted once per byte, other copies once per 32; the second limit depends on the cache's size.
    "GLIBC_TUNABLES": f"glibc.cpu.x86_rep_movsb_threshold={_LARGE}:glibc.cpu.x86_non_temporal_threshold={_LARGE}",
}


@dataclass(slots=True)
class Profile:
    """What callgrind counted: instructions by (object, source file), and calls by the name of what was called."""

    instructions: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def allocations(self) -> int:
        """Calls of the allocator, whoever made them."""
        return sum(self.calls[name] for name in _ALLOCATING)

    def parts(self, harness: str) -> dict[str, int]:
        """Instructions by PARTS. Source files whose path contains `harness` are left out."""
        parts = dict.fromkeys(PARTS, 0)
        for (binary, source), count in self.instructions.items():
            if harness not in source:
                parts[_part(binary)] += count
        return parts


@dataclass(frozen=True, slots=True)
class Run:
    """One load under callgrind; `said` is what the program printed (see bench/instructions/traffic.c)."""

    profile: Profile
    said: dict[str, Any]


def _part(binary: str) -> str:
    name = binary.rpartition("/")[2]
    if name == "traffic":
        return "own"
    return next((part for prefix, part in _LIBRARIES.items() if name.startswith(prefix)), "other")


def parse_profile(text: str) -> Profile:
    """Reads a callgrind.out file that was written without compressed names and positions, for one event.

    The format: https://valgrind.org/docs/manual/cl-format.html. Raises BenchError if the instructions read do not add
    up to the file's own total, or if it has none."""
    profile = Profile()
    binary = source = called = ""
    total: int | None = None
    inclusive = False
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if line[:1].isdigit():
            if not inclusive:  # the line after calls= is the callee's cost, which stands with the callee already
                profile.instructions[binary, source] += int(line.split()[1])
            inclusive = False
        elif line.startswith("totals:"):
            total = int(line.split()[1])
        elif not equals:
            continue
        elif key == "ob":
            binary = value
        elif key in ("fl", "fi", "fe"):
            source = value
        elif key == "cfn":
            called = value
        elif key == "calls":
            profile.calls[called] += int(value.split()[0])
            inclusive = True
    if not total or total != profile.instructions.total():
        raise BenchError(
            f"cannot read callgrind's output: {profile.instructions.total()} of {total} instructions found"
        )
    return profile


def check_machine() -> None:
    """Raises BenchError when valgrind is missing, or the processor lacks what the fixed environment asks for."""
    if shutil.which("valgrind") is None:
        raise BenchError("valgrind is missing: apt-get install valgrind")
    if platform.machine() == "x86_64":
        missing = missing_features(Path("/proc/cpuinfo").read_text())
        if missing:
            raise BenchError(f"this processor lacks {', '.join(missing)}: count on an x86-64-v3 with AES-NI")


def valgrind_version() -> str:
    """As in "3.19.0"."""
    done = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip().removeprefix("valgrind-")


def missing_features(cpuinfo: str) -> list[str]:
    """Those of the needed x86 features that /proc/cpuinfo does not name."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return sorted(_PROCESSOR.difference(flags.partition(":")[2].split()))


def count_instructions(program: Path, load: str, units: int, output: Path) -> Run:
    """Runs `program LOAD UNITS` and leaves callgrind's file at `output`. Raises BenchError when it fails."""
    output.unlink(missing_ok=True)
    command = [
        "valgrind", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no", "--compress-strings=no",
        "--compress-pos=no", f"--callgrind-out-file={output}", str(program), load, str(units),
    ]  # fmt: skip
    environment = {"PATH": os.environ.get("PATH", os.defpath), **_ENVIRONMENT}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{load}: not done after {_SECONDS} s under callgrind") from None
    if done.returncode != 0 or not output.exists():
        lines = [line for line in done.stderr.splitlines() if not line.startswith("==")] or done.stderr.splitlines()
        raise BenchError(f"{load}: {lines[-1] if lines else f'ended with status {done.returncode}'}")
    return Run(parse_profile(output.read_text()), json.loads(done.stdout))
