"""What is in another process's memory: read from outside, whatever the process says of itself (needs root)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ \S+ *(.*)")
_PIECE = 1 << 22


@dataclass(frozen=True)
class Mapping:
    """A range of addresses. `flags`: the VmFlags of smaps (proc(5)), such as "lo" for locked, "dd" for not dumped."""

    begin: int
    end: int
    name: str
    flags: frozenset[str]

    @property
    def protected(self) -> bool:
        """Locked in memory, and left out of core dumps."""
        return {"lo", "dd"} <= self.flags


def mappings(pid: int) -> list[Mapping]:
    """Those that can be read and written."""
    found: list[Mapping] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if (match := _MAPPING.match(line)) is not None:
            current = match if match[3].startswith("rw") else None
        elif line.startswith("VmFlags:") and current is not None:
            flags = frozenset(line.split()[1:])
            found.append(Mapping(int(current[1], 16), int(current[2], 16), current[4], flags))
    return found


def content(pid: int, mapping: Mapping) -> bytes:
    """What is there now; nothing if it has gone."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        pieces = []
        try:
            memory.seek(mapping.begin)
            while (at := memory.tell()) < mapping.end and (piece := memory.read(min(_PIECE, mapping.end - at))):
                pieces.append(piece)
        except (OSError, OverflowError, ValueError):
            return b""
        return b"".join(pieces)


def places(pid: int, *texts: bytes) -> list[Mapping]:
    """Where any of the texts is."""
    return [one for one in mappings(pid) if any(text in content(pid, one) for text in texts)]


def numbers(pid: int, size: int) -> Iterator[bytes]:
    """All that may be private numbers of `size` bytes in the process's protected memory, in both orders of bytes."""
    for one in mappings(pid):
        if one.protected:
            data = content(pid, one)
            for at in range(0, len(data) - size + 1, 16):
                if data[at : at + 8].strip(b"\0"):
                    yield data[at : at + size]
                    yield data[at : at + size][::-1]
