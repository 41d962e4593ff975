"""cext/src/loop/ring.c on a ring buffer of the kernel, which a program fills; tests/cext/test_ring.c has the rest."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeseal.linux import bpf

pytestmark = pytest.mark.ebpf_only("the ring is a map of BPF")

CHECKOUT = Path(__file__).resolve().parents[2]
MAP_TYPE_RINGBUF = 27
SIZE = 1 << 16
RECORD = 96
ROOM = SIZE // (8 + RECORD)
FULL = 0xFFFFFFF5  # -EAGAIN
TOLERANCE = 4


def instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, destination | source << 4, offset, value)


def copying(ring: int) -> bytes:
    """A program that puts the first bytes of its packet into a ring; its verdict is the helper's result."""
    return b"".join(
        [
            instruction(0xB7, 2, value=0),
            instruction(0xBF, 3, 10),
            instruction(0x07, 3, value=-RECORD),
            instruction(0xB7, 4, value=RECORD),
            instruction(0x85, value=26),  # bpf_skb_load_bytes
            instruction(0x55, 0, offset=7),
            instruction(0x18, 1, 1, value=ring),
            instruction(0),
            instruction(0xBF, 2, 10),
            instruction(0x07, 2, value=-RECORD),
            instruction(0xB7, 3, value=RECORD),
            instruction(0xB7, 4, value=0),
            instruction(0x85, value=130),  # bpf_ringbuf_output
            instruction(0x95),
        ]
    )


@dataclass
class Ends:
    """A ring's writer, the program, and its reader, the core's."""

    library: ctypes.CDLL
    ring: int
    program: int
    state: ctypes.Array[ctypes.c_char]

    def write(self, value: int) -> int:
        record = struct.pack("=IIII", TOLERANCE, 0, value, 0)
        return bpf.program_test_run(self.program, record.ljust(RECORD, b"\x5a"))[0]

    def read(self) -> int | None:
        at = self.library.ring_next(self.state)
        if at is None:
            return None
        kind, length, value, _, first = struct.unpack("=IIIII", ctypes.string_at(at, 20))
        assert (kind, length, first) == (TOLERANCE, 0, 0x5A5A5A5A)
        return int(value)

    def done(self) -> bool:
        return bool(self.library.ring_done(self.state))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    output = tmp_path_factory.mktemp("ring") / "ring.so"
    includes = [f"-I{CHECKOUT / 'cext' / name}" for name in ("include", "src")]
    source = CHECKOUT / "cext" / "src" / "loop" / "ring.c"
    subprocess.run(["gcc", "-std=gnu11", "-shared", "-fPIC", *includes, source, "-o", output], check=True, timeout=60)
    library = ctypes.CDLL(str(output))
    library.ring_size.restype = ctypes.c_size_t
    library.ring_open.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    library.ring_next.restype = ctypes.c_void_p
    return library


@pytest.fixture
def ends(library: ctypes.CDLL) -> Iterator[Ends]:
    ring = bpf.map_create(MAP_TYPE_RINGBUF, 0, 0, SIZE, 0, "ring")
    program = bpf.program_load(bpf.PROG_SCHED_CLS, 0, copying(ring), "copying")
    ends = Ends(library, ring, program, ctypes.create_string_buffer(64))
    try:
        assert library.ring_open(ends.state, ring, library.ring_size(ring)) == 0
        yield ends
        library.ring_close(ends.state)
    finally:
        os.close(program)
        os.close(ring)


def test_its_size_is_the_kernels(ends: Ends) -> None:
    assert ends.library.ring_size(ends.ring) == SIZE
    assert ends.library.ring_size(ends.program) == 0


def test_records_of_a_program_are_read_over_the_end_of_a_full_ring(ends: Ends) -> None:
    for start in range(0, 3000, 1000):
        values = range(start, start + ROOM)
        assert [ends.write(value) for value in values] == [0] * ROOM
        assert ends.write(1) == FULL
        assert [ends.read() for _ in values] == list(values)
        assert ends.read() is None
        assert ends.write(1) == FULL
        ends.done()


def test_a_poll_sees_what_is_unread(ends: Ends) -> None:
    with select.epoll() as poll:
        poll.register(ends.ring, select.EPOLLIN)
        assert poll.poll(0) == []
        for value in (7, 8):
            assert ends.write(value) == 0
        assert poll.poll(0) == [(ends.ring, select.EPOLLIN)]
        assert ends.read() == 7
        ends.done()
        assert poll.poll(0) == [(ends.ring, select.EPOLLIN)]
        assert ends.read() == 8
        ends.done()
        assert poll.poll(0) == []
        assert ends.write(9) == 0
        assert poll.poll(5) == [(ends.ring, select.EPOLLIN)]


def test_an_edge_tells_of_what_comes_after_all_was_done(ends: Ends) -> None:
    with select.epoll() as poll:
        poll.register(ends.ring, select.EPOLLIN | select.EPOLLET)
        for value in range(0, 300, 3):
            assert ends.write(value) == 0
            assert poll.poll(5) == [(ends.ring, select.EPOLLIN)]
            assert ends.write(value + 1) == 0
            assert [ends.read(), ends.read(), ends.read()] == [value, value + 1, None]
            assert ends.write(value + 2) == 0
            assert ends.done()
            assert ends.read() == value + 2
            assert not ends.done()
            poll.poll(0)


def test_the_next_reader_goes_on_with_what_is_not_done(ends: Ends) -> None:
    for value in (1, 2, 3):
        assert ends.write(value) == 0
    assert ends.read() == 1
    ends.done()
    assert ends.read() == 2
    ends.library.ring_close(ends.state)
    assert ends.library.ring_open(ends.state, ends.ring, SIZE) == 0
    assert [ends.read(), ends.read(), ends.read()] == [2, 3, None]
