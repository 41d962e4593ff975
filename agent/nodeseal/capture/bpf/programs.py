"""Loading the compiled BPF programs, with the maps of the caller's choice, as often as needed."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterable, Mapping

from nodeseal.capture.bpf.compile import Compiled
from nodeseal.capture.errors import CaptureError
from nodeseal.linux import bpf

_INSN_SIZE = 8
_VERSION_DIGITS = 12
_IMMEDIATE = 4  # offset of the immediate in struct bpf_insn

# Function -> (program type, expected attach type).
_KINDS = {
    "mark_connect4": (bpf.PROG_CGROUP_SOCK_ADDR, bpf.ATTACH_CGROUP_INET4_CONNECT),
    "mark_connect6": (bpf.PROG_CGROUP_SOCK_ADDR, bpf.ATTACH_CGROUP_INET6_CONNECT),
    "keep_mark": (bpf.PROG_CGROUP_SOCKOPT, bpf.ATTACH_CGROUP_SETSOCKOPT),
    "assign_lookup": (bpf.PROG_SK_LOOKUP, bpf.ATTACH_SK_LOOKUP),
    "steer_ingress": (bpf.PROG_SCHED_CLS, 0),
    "hold_egress": (bpf.PROG_SCHED_CLS, 0),
    "park_loopback": (bpf.PROG_SCHED_CLS, 0),
    "watch_dials": (bpf.PROG_SOCK_OPS, 0),
    "mark_host4": (bpf.PROG_CGROUP_SOCK_ADDR, bpf.ATTACH_CGROUP_INET4_CONNECT),
    "mark_host6": (bpf.PROG_CGROUP_SOCK_ADDR, bpf.ATTACH_CGROUP_INET6_CONNECT),
    "note_loopback": (bpf.PROG_SCHED_CLS, 0),
    "restore_mark": (bpf.PROG_SCHED_CLS, 0),
    "lookup_host": (bpf.PROG_SK_LOOKUP, bpf.ATTACH_SK_LOOKUP),
    "return_host": (bpf.PROG_SCHED_CLS, 0),
}
PROGRAMS = tuple(_KINDS)
_INNER = {"rings": "parked", "host_rings": "parked"}
"""A map of maps -> the map that its values are like."""


class Programs:
    """What was compiled, ready to be loaded. Every method returns a descriptor that the caller closes."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self.version = _version(compiled)
        """One word for all of them: programs of another version are to be replaced."""

    def new_map(self, name: str) -> int:
        """A new map of the shape that the programs expect. Raises CaptureError."""
        shape = self._compiled.maps[name]
        inner = self.new_map(_INNER[name]) if name in _INNER else 0
        try:
            return bpf.map_create(
                shape.kind, shape.key_size, shape.value_size, shape.max_entries, shape.flags, f"ns_{name}", inner
            )
        except OSError as error:
            raise CaptureError(f"cannot create the BPF map {name}: {error.strerror}; {_hint(error)}") from None
        finally:
            if inner:
                os.close(inner)

    def load(self, name: str, maps: Mapping[str, int]) -> int:
        """A program that uses these maps (name -> descriptor). Raises CaptureError."""
        code = self._compiled.programs[name]
        instructions = bytearray(code.instructions)
        for index, target in code.relocations.items():
            struct.pack_into("=i", instructions, index * _INSN_SIZE + _IMMEDIATE, maps[target])
        kind, attach_type = _KINDS[name]
        try:
            return bpf.program_load(kind, attach_type, bytes(instructions), name)
        except bpf.VerifierError as error:
            detail = f" ({error.reason})" if error.reason else ""
            raise CaptureError(
                f"the kernel refused the BPF program {name}: {error.strerror}{detail}; {_hint(error)}"
            ) from None

    def fits(self, name: str, fd: int) -> bool:
        """Whether an existing map has the shape that the programs expect."""
        info = bpf.map_info(fd)
        shape = self._compiled.maps[name]
        return (info.kind, info.key_size, info.value_size, info.max_entries) == (
            shape.kind,
            shape.key_size,
            shape.value_size,
            shape.max_entries,
        )

    def probe(self, names: Iterable[str] = PROGRAMS) -> None:
        """Load each once and let go of it: finds out what the kernel lacks before anything is changed. Raises
        CaptureError.
        """
        maps: dict[str, int] = {}
        try:
            for name in self._compiled.maps:
                maps[name] = self.new_map(name)
            for name in names:
                os.close(self.load(name, maps))
        finally:
            for fd in maps.values():
                os.close(fd)


def _hint(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "this needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN"
    return "the kernel may be too old (5.17 has all that is needed) or built without BPF"


def _version(compiled: Compiled) -> str:
    digest = hashlib.sha256()
    for name, code in sorted(compiled.programs.items()):
        instructions = bytearray(code.instructions)
        for index in code.relocations:
            # What stands there is the descriptor of the compiler's own map.
            struct.pack_into("=i", instructions, index * _INSN_SIZE + _IMMEDIATE, 0)
        digest.update(f"{name} {sorted(code.relocations.items())} ".encode() + bytes(instructions))
    digest.update(repr(sorted(compiled.maps.items())).encode())
    return digest.hexdigest()[:_VERSION_DIGITS]
