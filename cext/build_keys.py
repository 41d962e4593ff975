"""Builds nodeseal._keys, the cffi extension that holds private keys in the agent's process.

Apart from nodeseal._core, so that an agent has nothing of a core in its memory. What Python may call is read from the
header itself, between its cffi marks.
"""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
HEADER = HERE / "include" / "nodeseal_keys.h"

ffi = FFI()
ffi.cdef(HEADER.read_text().partition("/* cffi: begin */")[2].partition("/* cffi: end */")[0])
ffi.set_source(
    "nodeseal._keys",
    '#include "nodeseal_keys.h"',
    sources=[os.path.relpath(HERE / "src" / name) for name in ("base/secure_heap.c", "base/wipe.c", "keys/keys.c")],
    include_dirs=[os.path.relpath(HERE / "include"), os.path.relpath(HERE / "src")],
    libraries=["crypto"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
    # Bound at their first call, functions have the dynamic linker put registers below what wipe.c reaches.
    extra_link_args=["-Wl,-z,now"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
