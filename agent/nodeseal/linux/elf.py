"""Which shared libraries a program or library is linked with, as the dynamic linker of this machine finds them."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

_PT_INTERP = 3
_LINE = re.compile(r"\s(/\S.*) \(0x[0-9a-f]+\)$")


def interpreter(program: Path) -> Path:
    """The dynamic linker that a program names (elf(5), 64 bits). Raises OSError, ValueError."""
    with program.open("rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            raise ValueError(f"{program} is no 64-bit ELF program")
        order = "<" if head[5] == 1 else ">"
        (offset,) = struct.unpack_from(order + "Q", head, 32)
        size, count = struct.unpack_from(order + "HH", head, 54)
        for number in range(count):
            file.seek(offset + number * size)
            entry = file.read(size)
            if struct.unpack_from(order + "I", entry)[0] == _PT_INTERP:
                where, length = (
                    struct.unpack_from(order + "Q", entry, 8)[0],
                    struct.unpack_from(order + "Q", entry, 32)[0],
                )
                file.seek(where)
                return Path(os.fsdecode(file.read(length).rstrip(b"\0")))
    raise ValueError(f"{program} names no dynamic linker")


def libraries(file: Path, linker: Path) -> list[Path] | None:
    """The paths by which `linker` loads what the file is linked with (ld.so(8)); None when one is missing. Raises
    OSError."""
    asked = subprocess.run([linker, "--list", file], capture_output=True, text=True, check=False)
    if asked.returncode or "not found" in asked.stdout:
        return None
    return [Path(match[1]) for line in asked.stdout.splitlines() if (match := _LINE.search(line)) is not None]
