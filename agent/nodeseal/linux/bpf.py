"""bpf(2): maps, programs, links and pins.

Functions here do one system call each and raise OSError with the kernel's errno, except where said. Layouts are those
of union bpf_attr in include/uapi/linux/bpf.h; the kernel accepts an attribute that is longer than it knows as long as
the rest is zero, so one zeroed buffer serves all commands.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nodeseal.linux.libc import LIBC, checked

# enum bpf_map_type, enum bpf_prog_type and enum bpf_attach_type.
MAP_HASH_OF_MAPS = 13
PROG_SCHED_CLS = 3
PROG_SOCK_OPS = 13
PROG_CGROUP_SOCK_ADDR = 18
PROG_CGROUP_SOCKOPT = 25
PROG_SK_LOOKUP = 30
ATTACH_CGROUP_SOCK_OPS = 3
ATTACH_CGROUP_INET4_CONNECT = 10
ATTACH_CGROUP_INET6_CONNECT = 11
ATTACH_CGROUP_SETSOCKOPT = 22
ATTACH_SK_LOOKUP = 36
ATTACH_TCX_INGRESS = 46
ATTACH_TCX_EGRESS = 47
_BEFORE = 1 << 3  # BPF_F_BEFORE; with no other program named: before all

_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_CMD_MAP_CREATE = 0
_CMD_MAP_LOOKUP = 1
_CMD_MAP_UPDATE = 2
_CMD_MAP_DELETE = 3
_CMD_MAP_GET_NEXT_KEY = 4
_CMD_PROG_LOAD = 5
_CMD_OBJ_PIN = 6
_CMD_OBJ_GET = 7
_CMD_PROG_TEST_RUN = 10
_CMD_PROG_BY_ID = 13
_CMD_OBJ_INFO = 15
_CMD_PROG_QUERY = 16
_CMD_MAP_LOOKUP_BATCH = 24
_CMD_MAP_UPDATE_BATCH = 26
_CMD_LINK_CREATE = 28
_CMD_LINK_UPDATE = 29
_CMD_LINK_DETACH = 34

_ATTR_SIZE = 144
_AT_ONCE = 2048
_LINK_INFO_HEAD = 16  # struct bpf_link_info before its union: type, id, prog_id, padding
_LOG_SIZE = 1 << 20
_LICENSE = b"GPL"  # bpf/*.c may be used under the GPL; bpf_fib_lookup asks for it


class VerifierError(OSError):
    """BPF_PROG_LOAD failed. `reason`: the last meaningful line of the verifier's log, or ""."""

    def __init__(self, number: int, log: str) -> None:
        super().__init__(number, os.strerror(number))
        lines = [
            line
            for line in log.splitlines()
            if line.strip() and not line.startswith(("processed ", "verification time"))
        ]
        self.reason = lines[-1].strip() if lines else ""


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    number = _NR_BPF.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf(2) is not known for the machine type {platform.machine()}")
    return checked(int(LIBC.syscall(number, command, ctypes.byref(attributes), len(attributes))))


def _attributes(layout: str, *values: int | bytes) -> ctypes.Array[ctypes.c_char]:
    buffer = ctypes.create_string_buffer(_ATTR_SIZE)
    struct.pack_into(layout, buffer, 0, *values)
    return buffer


def _object_name(name: str) -> bytes:
    return name.encode()[:15]


# ---- maps


@dataclass(frozen=True, slots=True)
class MapInfo:
    """The head of struct bpf_map_info. `kind`: enum bpf_map_type; sizes in bytes."""

    kind: int
    identifier: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def map_create(
    kind: int, key_size: int, value_size: int, max_entries: int, flags: int, name: str, inner: int = 0
) -> int:
    """A new map's file descriptor. `inner`: of a map of maps, a map that is like its values."""
    return _bpf(
        _CMD_MAP_CREATE,
        _attributes("=IIIIIII16s", kind, key_size, value_size, max_entries, flags, inner, 0, _object_name(name)),
    )


def map_info(fd: int) -> MapInfo:
    """What the kernel knows about a map."""
    info = _object_info(fd, 88)
    return MapInfo(*struct.unpack_from("=IIIIII", info))


def same_map(one: int, other: int) -> bool:
    """Whether two descriptors are of one map."""
    try:
        return map_info(one).identifier == map_info(other).identifier
    except OSError:  # not a map
        return False


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value under a key (for per-CPU maps all CPUs' values, each padded to 8 bytes), or None."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value_size)
    try:
        _bpf(
            _CMD_MAP_LOOKUP,
            _attributes("=IxxxxQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0),
        )
    except FileNotFoundError:
        return None
    return value_buffer.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Create or replace the value under a key."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, len(value))
    _bpf(
        _CMD_MAP_UPDATE,
        _attributes("=IxxxxQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0),
    )


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """The same for `count` keys and values, one behind the other."""
    key_buffer = ctypes.create_string_buffer(keys, len(keys))
    value_buffer = ctypes.create_string_buffer(values, len(values))
    _bpf(
        _CMD_MAP_UPDATE_BATCH,
        _attributes("=QQQQIIQQ", 0, 0, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), count, fd, 0, 0),
    )


def possible_cpus() -> int:
    """How many values a per-CPU map has under a key: one for each CPU that may ever come ("0-3", "0", "0,2-3")."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").rsplit("-", 1)[-1]) + 1


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """All keys; what is put in or removed meanwhile may be among them or not."""
    key_buffer, next_buffer = ctypes.create_string_buffer(key_size), ctypes.create_string_buffer(key_size)
    key = 0  # before the first
    while True:
        try:
            _bpf(_CMD_MAP_GET_NEXT_KEY, _attributes("=IxxxxQQ", fd, key, ctypes.addressof(next_buffer)))
        except FileNotFoundError:
            return
        yield next_buffer.raw
        key_buffer.raw = next_buffer.raw
        key = ctypes.addressof(key_buffer)


def map_entries(fd: int, key_size: int, value_size: int) -> list[tuple[bytes, bytes]]:
    """All keys of a hash map with their values, by some thousands at once; what is put in or removed meanwhile may be
    among them or not."""
    found: list[tuple[bytes, bytes]] = []
    token = ctypes.create_string_buffer(4)
    before, capacity = 0, _AT_ONCE
    while True:
        keys, values = (ctypes.create_string_buffer(size * capacity) for size in (key_size, value_size))
        places = (before, *(ctypes.addressof(one) for one in (token, keys, values)))
        attributes = _attributes("=QQQQIIQQ", *places, capacity, fd, 0, 0)
        last = False
        try:
            _bpf(_CMD_MAP_LOOKUP_BATCH, attributes)
        except FileNotFoundError:
            last = True
        except OSError as error:
            if error.errno != errno.ENOSPC:  # more under one hash than there is room for
                raise
            capacity *= 2
            continue
        (count,) = struct.unpack_from("=I", attributes, 32)
        all_keys, all_values = keys.raw, values.raw
        found += [
            (all_keys[n * key_size : (n + 1) * key_size], all_values[n * value_size : (n + 1) * value_size])
            for n in range(count)
        ]
        if last:
            return found
        before = ctypes.addressof(token)


def map_delete(fd: int, key: bytes) -> bool:
    """Remove a key. False when it was not there."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_CMD_MAP_DELETE, _attributes("=IxxxxQ", fd, ctypes.addressof(key_buffer)))
    except FileNotFoundError:
        return False
    return True


# ---- programs and links


def program_load(kind: int, attach_type: int, instructions: bytes, name: str) -> int:
    """A verified program's file descriptor. Raises VerifierError."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(_LICENSE)

    def load(log_level: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
        return _bpf(
            _CMD_PROG_LOAD,
            _attributes(
                "=IIQQIIQII16sII",
                kind,
                len(instructions) // 8,
                ctypes.addressof(code),
                ctypes.addressof(license_text),
                log_level,
                len(log) if log is not None else 0,
                ctypes.addressof(log) if log is not None else 0,
                0,
                0,
                _object_name(name),
                0,
                attach_type,
            ),
        )

    try:
        return load(0, None)
    except OSError as first:
        # Once more, for the reason: the log costs a megabyte that a program which loads does not need.
        log = ctypes.create_string_buffer(_LOG_SIZE)
        try:
            return load(1, log)
        except OSError:
            raise VerifierError(first.errno or 0, log.value.decode(errors="replace")) from None


def program_test_run(
    fd: int, data: bytes | None, context: bytes | None = None, context_size_out: int = 0
) -> tuple[int, bytes]:
    """Run a program once (BPF_PROG_TEST_RUN). Returns its verdict, as an unsigned 32-bit number, and the context."""
    data_in = ctypes.create_string_buffer(data or b"", len(data or b"") or 1)
    context_in = ctypes.create_string_buffer(context or b"", len(context or b"") or 1)
    context_out = ctypes.create_string_buffer(context_size_out or 1)
    attributes = _attributes(
        "=IIIIQQIIIIQQ",
        fd,
        0,
        len(data or b""),
        0,
        ctypes.addressof(data_in) if data else 0,
        0,
        0 if data is None else 1,
        0,
        len(context or b""),
        context_size_out,
        ctypes.addressof(context_in) if context else 0,
        ctypes.addressof(context_out) if context_size_out else 0,
    )
    _bpf(_CMD_PROG_TEST_RUN, attributes)
    return struct.unpack_from("=I", attributes, 4)[0], context_out.raw[:context_size_out]


def program_identifier(fd: int) -> int:
    """The kernel's number of a program."""
    identifier: int = struct.unpack_from("=II", _object_info(fd, 64))[1]
    return identifier


def program_name(fd: int) -> str:
    """What it was called when it was loaded; 15 characters at most."""
    # struct bpf_prog_info: the name is behind 64 bytes of numbers.
    return _object_info(fd, 80)[64:80].rstrip(b"\0").decode(errors="replace")


def program_by_identifier(identifier: int) -> int:
    """A descriptor of a program that is loaded, by the kernel's number of it."""
    return _bpf(_CMD_PROG_BY_ID, _attributes("=III", identifier, 0, 0))


def cgroup_programs(cgroup_fd: int, attach_type: int) -> list[int]:
    """The numbers of the programs attached to a cgroup, in the order in which they run."""
    return _attached_programs(cgroup_fd, attach_type)


def tcx_programs(index: int, attach_type: int = ATTACH_TCX_INGRESS) -> list[int]:
    """The same for what comes in by a device of the calling thread's namespace, or goes out: its TCX programs."""
    return _attached_programs(index, attach_type)


def _attached_programs(target: int, attach_type: int) -> list[int]:
    capacity = 256
    identifiers = (ctypes.c_uint32 * capacity)()
    attributes = _attributes("=IIIIQI", target, attach_type, 0, 0, ctypes.addressof(identifiers), capacity)
    _bpf(_CMD_PROG_QUERY, attributes)
    (count,) = struct.unpack_from("=I", attributes, 24)
    return list(identifiers[:count])


def link_create(program_fd: int, target_fd: int, attach_type: int) -> int:
    """Attach a program; closing the last descriptor of the link, pins included, detaches it. cgroup links are MULTI."""
    return _bpf(_CMD_LINK_CREATE, _attributes("=IIII", program_fd, target_fd, attach_type, 0))


def tcx_link_create(program_fd: int, index: int, attach_type: int = ATTACH_TCX_INGRESS) -> int:
    """Attach a program to what comes in by a device of the calling thread's namespace, or goes out, before all others
    there."""
    return _bpf(_CMD_LINK_CREATE, _attributes("=IIII", program_fd, index, attach_type, _BEFORE))


def link_update(link_fd: int, program_fd: int) -> None:
    """Another program takes the place of the one that a link attaches: at no time is there none, or both."""
    _bpf(_CMD_LINK_UPDATE, _attributes("=IIII", link_fd, program_fd, 0, 0))


def link_program(fd: int) -> int:
    """The kernel's number of the program that a link attaches."""
    program: int = struct.unpack_from("=III", _object_info(fd, 64))[2]
    return program


def link_cgroup(fd: int) -> int:
    """The number of the cgroup that a link is attached to; 0 when that was removed."""
    cgroup: int = struct.unpack_from("=Q", _object_info(fd, 64), _LINK_INFO_HEAD)[0]
    return cgroup


def link_detach(fd: int) -> None:
    """Detach at once, whoever else holds the link."""
    _bpf(_CMD_LINK_DETACH, _attributes("=I", fd))


def pin(fd: int, path: Path) -> None:
    """Give a map, program or link a name in a BPF file system, which keeps it alive."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_CMD_OBJ_PIN, _attributes("=QII", ctypes.addressof(name), fd, 0))


def pinned(path: Path) -> int:
    """A descriptor of what is pinned at a path. Raises FileNotFoundError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_CMD_OBJ_GET, _attributes("=QII", ctypes.addressof(name), 0, 0))


def _object_info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    _bpf(_CMD_OBJ_INFO, _attributes("=IIQ", fd, size, ctypes.addressof(info)))
    return info.raw
