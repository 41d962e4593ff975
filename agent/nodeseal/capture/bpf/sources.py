"""The sources of the BPF programs: where they are, and what the compiler is given of them.

bcc rewrites the calls of map methods (`counters.lookup(&key)`) in the main file only, and maps stand once, in bpf/lib/.
So a program is compiled as one text, in which each header stands in the place where it is included first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from nodeseal.capture.errors import CaptureError

PROGRAMS = {
    "mark_connect": ("mark_connect4", "mark_connect6"),
    "keep_mark": ("keep_mark",),
    "assign_lookup": ("assign_lookup",),
    "steer_ingress": ("steer_ingress",),
    "hold_egress": ("hold_egress",),
    "park_loopback": ("park_loopback",),
    "watch_dials": ("watch_dials",),
    "mark_host": ("mark_host4", "mark_host6"),
    "note_loopback": ("note_loopback",),
    "restore_mark": ("restore_mark",),
    "lookup_host": ("lookup_host",),
    "return_host": ("return_host",),
}
"""Name of a source -> its entry functions."""
_INCLUDE = re.compile(r'#include "(.+)"')


def source_directory() -> Path:
    """Where the .c files are: beside the Python code, however it was installed (in a checkout: a link to bpf/).

    Raises CaptureError when they are not there.
    """
    directory = Path(__file__).resolve().parents[2] / "bpf"
    if not (directory / "nodeseal.h").is_file():
        raise CaptureError(
            f"BPF sources not found in {directory}: the installation is incomplete, install nodeseal again"
        )
    return directory


def files(directory: Path) -> list[Path]:
    """All of them, in an order that is always the same."""
    return sorted(directory.rglob("*.[ch]"))


def text_of(directory: Path, name: str) -> str:
    """The program in the file of this name, with all that it includes. Line directives let the compiler's messages
    tell each line's own file. Raises CaptureError.
    """
    return "\n".join(_expanded(directory, f"{name}.c", set())) + "\n"


def _expanded(directory: Path, name: str, seen: set[str]) -> Iterator[str]:
    seen.add(name)
    try:
        lines = (directory / name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CaptureError(f"cannot read {directory / name}: {error.strerror}; install nodeseal again") from None
    yield f'#line 1 "{name}"'
    for number, line in enumerate(lines, 1):
        included = _INCLUDE.match(line)
        if included is None:
            yield line
        elif included[1] in seen:
            yield ""
        else:
            yield from _expanded(directory, included[1], seen)
            yield f'#line {number + 1} "{name}"'
