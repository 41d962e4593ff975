"""Compile the BPF programs with bcc, in a process of its own: `python -m nodeseal.capture.bpf.compile`.

bcc leaves more than 100 MB resident in a process that compiled once, so the agent runs this as a short-lived child and
reads its standard output: one JSON object, see `Compiled`. The instructions still refer to the maps that bcc made
while compiling; `relocations` names the map for each such instruction, so that the loader can put in its own maps, as
many times as there are network namespaces.

No kernel headers are needed. bcc looks for a kernel tree in BCC_KERNEL_SOURCE; it gets a small one that is made here:
bcc injects its own copy of linux/bpf.h, so that ours is empty, and the rest comes from linux-libc-dev. Helpers such as
htons do not exist in it.

On failure: one line on standard error, exit status 1.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeseal.capture.bpf import sources
from nodeseal.capture.errors import CaptureError, CompilingInterruptedError
from nodeseal.linux import bpf

_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1
_INSN = struct.Struct("<BBhi")  # struct bpf_insn: code, registers, offset, immediate
_COMPILE_TIMEOUT = 60.0

_KCONFIG = """
#ifndef NODESEAL_KCONFIG_H
#define NODESEAL_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
typedef signed char s8;
typedef unsigned char u8;
typedef short s16;
typedef unsigned short u16;
typedef int s32;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef int pid_t;
#endif
"""


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a map must be created with: `kind` is the kernel's enum bpf_map_type."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProgramCode:
    """Instructions (8 bytes each); `relocations`: instruction index -> name of the map that it loads."""

    instructions: bytes
    relocations: dict[int, str]


@dataclass(frozen=True, slots=True)
class Compiled:
    """Everything in bpf/: programs by function name, maps by name (the same name means the same shape)."""

    programs: dict[str, ProgramCode]
    maps: dict[str, MapShape]

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(
            {
                "programs": {
                    name: {
                        "instructions": base64.b64encode(code.instructions).decode(),
                        "relocations": {str(index): target for index, target in code.relocations.items()},
                    }
                    for name, code in self.programs.items()
                },
                "maps": {
                    name: [shape.kind, shape.key_size, shape.value_size, shape.max_entries, shape.flags]
                    for name, shape in self.maps.items()
                },
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Compiled:
        """The inverse of to_json. Raises ValueError or KeyError for anything else."""
        value = json.loads(text)
        return cls(
            programs={
                name: ProgramCode(
                    instructions=base64.b64decode(code["instructions"]),
                    relocations={int(index): target for index, target in code["relocations"].items()},
                )
                for name, code in value["programs"].items()
            },
            maps={name: MapShape(*shape) for name, shape in value["maps"].items()},
        )


def compile_in_child(directory: Path | None = None) -> Compiled:
    """Run this module as a child of the same interpreter and read what it prints.

    `directory`: where the sources are, None to find them. Raises CaptureError; CompilingInterruptedError when that says
    nothing about the machine, so that another try may succeed.
    """
    command = [sys.executable, "-m", "nodeseal.capture.bpf.compile", str(directory or sources.source_directory())]
    # The child finds the package where this process found it, however that was arranged.
    package_root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(part for part in (package_root, os.environ.get("PYTHONPATH", "")) if part)
    try:
        child = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_COMPILE_TIMEOUT,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CompilingInterruptedError(
            f"compiling the BPF programs took longer than {_COMPILE_TIMEOUT:.0f} s: is the machine overloaded?"
        ) from None
    if child.returncode < 0:
        raise CompilingInterruptedError(
            f"compiling the BPF programs was ended by {_signal_name(-child.returncode)}: start the agent again; if "
            "that happens twice, look for a lack of memory (it takes 130 MB)"
        )
    if child.returncode != 0:
        lines = [line for line in child.stderr.splitlines() if line.strip()]
        raise CaptureError(lines[-1] if lines else f"compiling the BPF programs ended with status {child.returncode}")
    try:
        return Compiled.from_json(child.stdout)
    except (ValueError, KeyError, TypeError) as error:
        raise CaptureError(f"compiling the BPF programs printed something unexpected: {error}") from None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def compile_all(directory: Path) -> Compiled:
    """Compile every source with bcc, in this process. Raises CaptureError."""
    try:
        import bcc
    except ImportError:
        raise CaptureError(
            f"the Python module bcc is missing for {sys.executable}: apt-get install python3-bpfcc, "
            "and use a virtual environment made with --system-site-packages by /usr/bin/python3"
        ) from None

    programs: dict[str, ProgramCode] = {}
    maps: dict[str, MapShape] = {}
    with tempfile.TemporaryDirectory(prefix="nodeseal-headers-") as scratch:
        os.environ["BCC_KERNEL_SOURCE"] = str(_kernel_tree(Path(scratch)))
        for source, functions in sources.PROGRAMS.items():
            path = directory / f"{source}.c"
            module, messages = _compile_one(bcc, sources.text_of(directory, source))
            if module is None:
                raise CaptureError(f"cannot compile {path}: {_first_error(messages)}")
            names, shapes = _maps_of(bcc, module)
            for name, shape in shapes.items():
                if maps.setdefault(name, shape) != shape:
                    raise CaptureError(f"{path}: map {name} is declared differently in another source file")
            for function in functions:
                programs[function] = _code_of(module.dump_func(function.encode()), names)
    return Compiled(programs, maps)


def _compile_one(bcc: Any, text: str) -> tuple[Any | None, str]:
    """A bcc module or None, and what the compiler wrote (it writes to file descriptor 2 directly)."""
    with tempfile.TemporaryFile() as log:
        module = None
        with _stderr_to(log.fileno()), contextlib.suppress(Exception):
            module = bcc.BPF(text=text.encode(), cflags=["-Werror=implicit-function-declaration"])
        log.seek(0)
        return module, log.read().decode(errors="replace")


@contextlib.contextmanager
def _stderr_to(fd: int) -> Iterator[None]:
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


def _first_error(messages: str) -> str:
    if "could not open bpf map" in messages:
        reason = re.search(r"error: (.*)", messages)
        return (
            f"the kernel refused to create a BPF map ({reason.group(1) if reason else 'no reason given'}): "
            "this needs root, or CAP_BPF and CAP_NET_ADMIN"
        )
    for line in messages.splitlines():
        if "error:" in line:
            return line.strip()
    return messages.strip().splitlines()[-1] if messages.strip() else "bcc gave no reason"


def _maps_of(bcc: Any, module: Any) -> tuple[dict[int, str], dict[str, MapShape]]:
    """Map fd -> name, and name -> shape. bcc's Python objects know too few map types, so its C library is asked."""
    lib = bcc.lib
    lib.bpf_num_tables.restype = ctypes.c_size_t
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_table_fd_id.restype = ctypes.c_int
    lib.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    names: dict[int, str] = {}
    shapes: dict[str, MapShape] = {}
    for index in range(lib.bpf_num_tables(module.module)):
        name = lib.bpf_table_name(module.module, index).decode()
        fd = lib.bpf_table_fd_id(module.module, index)
        info = bpf.map_info(fd)
        names[fd] = name
        shapes[name] = MapShape(info.kind, info.key_size, info.value_size, info.max_entries, info.flags)
    return names, shapes


def _code_of(instructions: bytes, names: dict[int, str]) -> ProgramCode:
    relocations: dict[int, str] = {}
    wide = False
    for index in range(len(instructions) // _INSN.size):
        if wide:  # the second half of a 16-byte instruction
            wide = False
            continue
        code, registers, _, immediate = _INSN.unpack_from(instructions, index * _INSN.size)
        if code == _LD_IMM64:
            wide = True
            if registers >> 4 == _PSEUDO_MAP_FD:
                relocations[index] = names[immediate]
    return ProgramCode(instructions, relocations)


def _kernel_tree(root: Path) -> Path:
    """Make what bcc takes for kernel sources. Returns the directory for BCC_KERNEL_SOURCE."""
    files = {
        "include/linux/kconfig.h": _KCONFIG,
        "include/uapi/linux/bpf.h": "",  # bcc brings its own copy under the same name
        "include/linux/bpf.h": "",
        "include/linux/log2.h": "#define ilog2(n) (63 - __builtin_clzll(n))\n",
        "include/asm/page.h": "",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if not Path("/usr/include/linux/if_packet.h").is_file():
        raise CaptureError(
            "the kernel's user-space headers are missing in /usr/include: apt-get install linux-libc-dev"
        )
    for name, source in (
        ("include/uapi/linux", Path("/usr/include/linux")),
        ("include/linux", Path("/usr/include/linux")),
        ("include/asm", Path(f"/usr/include/{os.uname().machine}-linux-gnu/asm")),
        ("include", Path("/usr/include")),
    ):
        wanted = ("asm-generic",) if name == "include" else None
        for entry in source.iterdir():
            target = root / name / entry.name
            if not target.exists() and (wanted is None or entry.name in wanted):
                target.symlink_to(entry)
    return root


def main() -> int:
    """Print the compiled programs as JSON. The first argument, if any, is where the sources are."""
    try:
        print(compile_all(Path(sys.argv[1]) if len(sys.argv) > 1 else sources.source_directory()).to_json())
    except CaptureError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
