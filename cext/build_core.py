"""Builds nodeseal._core, the cffi extension around the splice core (API mode: the C compiler checks every declaration).

What Python may call is read from the public header itself, between its cffi marks, so that the two cannot drift.
NODESEAL_SANITIZE=1 in the environment builds with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
HEADER = HERE / "include" / "nodeseal_core.h"


def declarations() -> str:
    """The part of the public header that cffi's parser reads."""
    text = HEADER.read_text()
    return text.partition("/* cffi: begin */")[2].partition("/* cffi: end */")[0]


def relative(path: Path) -> str:
    """setuptools wants sources relative to the project, which is where it runs the build."""
    return os.path.relpath(path)


COMPILE = ["-std=gnu11", "-O2", "-fno-strict-aliasing", "-Wall", "-Wextra"]
LIBRARIES = ["ssl", "crypto", "nghttp2", "pthread"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if os.environ.get("NODESEAL_SANITIZE") else []

ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "nodeseal._core",
    '#include "nodeseal_core.h"',
    sources=sorted(relative(path) for path in (HERE / "src").rglob("*.c") if path.parent.name != "keys"),
    include_dirs=[relative(HERE / "include"), relative(HERE / "src")],
    libraries=LIBRARIES,
    extra_compile_args=[*COMPILE, *SANITIZE],
    # Bound at their first call, functions have the dynamic linker put registers below what wipe.c reaches.
    extra_link_args=["-Wl,-z,now", *SANITIZE],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
