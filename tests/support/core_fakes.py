"""A stand-in for the compiled core: the real structures of nodeseal_core.h, with behaviour that tests can look into."""

from __future__ import annotations

import os
import queue
from functools import reduce
from pathlib import Path
from typing import Any

import cffi

from nodeseal.splice.native import Native

HEADER = Path(__file__).parents[2] / "cext" / "include" / "nodeseal_core.h"


def make_ffi() -> cffi.FFI:
    """The structures and constants of the header, without compiling anything."""
    text = HEADER.read_text(encoding="utf-8")
    ffi = cffi.FFI()
    ffi.cdef(text.split("/* cffi: begin */")[1].split("/* cffi: end */")[0])
    return ffi


def _concern(concern: Any) -> Any:
    """ "all", or (addresses, ports, workloads)."""
    if concern.all:
        return "all"
    size = 16
    packed = bytes(concern.addresses[0 : size * concern.address_count])
    addresses = {packed[at : at + size] for at in range(0, len(packed), size)}
    return addresses, {*concern.ports[0 : concern.port_count]}, {*concern.workloads[0 : concern.workload_count]}


class FakeLib:
    """The functions of nodeseal_core.h. `calls` records them; `questions` feeds the decision thread."""

    NS_REASON_MAX = 96
    NS_IDENTITY_MAX = 512
    NS_ENDPOINTS_MAX = 32

    def __init__(self, ffi: Any) -> None:
        self._ffi = ffi
        self.calls: list[tuple[Any, ...]] = []
        self.questions: queue.Queue[Any] = queue.Queue()
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.refuse: dict[str, str] = {}
        self.notices: list[dict[str, int]] = []
        self.rows: list[dict[str, Any]] = []
        self.anchors: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self.refusal_notices: list[dict[str, Any]] = []
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.events_lost = 0
        self.stopped = False
        self.live = 0
        self.strangers = 0

    def core_protect_keys(self) -> int:
        """It has no keys."""
        return 1

    def core_start(self, options: Any, error: Any, size: int) -> Any:
        if (text := self.refuse.get("core_start")) is not None:
            self._ffi.memmove(error, text.encode() + b"\0", len(text) + 1)
            return self._ffi.NULL
        self.calls.append(("core_start", options.workers, self._ffi.string(options.trust_domain).decode()))
        return self._ffi.cast("struct core *", 1)

    def core_stop(self, _core: Any) -> None:
        self.stopped = True

    def _result(self, name: str, error: Any, *call: Any) -> int:
        self.calls.append((name, *call))
        if (text := self.refuse.get(name)) is not None:
            self._ffi.memmove(error, text.encode() + b"\0", len(text) + 1)
            return -1
        return 0

    def core_workload_add(self, _core: Any, key: int, fd: int, address: Any, error: Any, _size: int) -> int:
        os.fstat(fd)
        return self._result("core_workload_add", error, key, bytes(address.ip)[12:])

    def core_workload_limits(self, _core: Any, key: int, limits: Any, error: Any, _size: int) -> int:
        values = (limits.connections, limits.memory, limits.new_connections)
        return self._result("core_workload_limits", error, key, values)

    def core_limit_notices(self, _core: Any, out: Any, capacity: int) -> int:
        count = 0
        while self.notices and count < capacity:
            for name, value in self.notices.pop(0).items():
                setattr(out[count], name, value)
            count += 1
        return count

    def _rows(self, rows: list[dict[str, Any]], out: Any, capacity: int) -> int:
        for index, row in enumerate(rows[:capacity]):
            for name, value in row.items():
                setattr(out[index], name, value)
        return len(rows)

    def core_refusal_notices(self, _core: Any, out: Any, capacity: int) -> int:
        count = self._rows(self.refusal_notices[:capacity], out, capacity)
        del self.refusal_notices[:capacity]
        return count

    def core_refusals(self, _core: Any, out: Any, capacity: int) -> int:
        return self._rows(self.refused, out, capacity)

    def core_trust(self, _core: Any, bundles: Any, count: int, error: Any, _size: int) -> int:
        text = self._ffi.string
        rows = [bundles[index] for index in range(count)]
        return self._result("core_trust", error, {text(row.trust_domain): text(row.pem) for row in rows})

    def core_revoke(
        self, _core: Any, revoked: bytes, count: int, restored: bytes, restored_count: int, whole: bool
    ) -> int:
        assert (len(revoked), len(restored)) == (16 * count, 16 * restored_count)
        self.calls.append(("core_revoke", revoked, restored, whole))
        return count

    def core_workload_credentials(
        self, _core: Any, key: int, chain: bytes, private: bytes, error: Any, _size: int
    ) -> int:
        return self._result("core_workload_credentials", error, key, chain, private)

    def core_workload_credentials_from(
        self, _core: Any, key: int, chain: bytes, fd: int, error: Any, _size: int
    ) -> int:
        return self._result("core_workload_credentials_from", error, key, chain, os.pread(fd, 4096, 0))

    def core_workload_listen(self, _core: Any, key: int, role: int, fd: int, error: Any, _size: int) -> int:
        os.fstat(fd)
        return self._result("core_workload_listen", error, key, role)

    def core_workload_unlisten(self, _core: Any, key: int, role: int, error: Any, _size: int) -> int:
        return self._result("core_workload_unlisten", error, key, role)

    def core_workload_remove(self, _core: Any, key: int, error: Any, _size: int) -> int:
        return self._result("core_workload_remove", error, key)

    def core_retire(self, _core: Any) -> None:
        self.calls.append(("core_retire",))

    def core_publish(self, _core: Any, addresses: bytes, count: int) -> None:
        assert len(addresses) == 16 * count
        self.calls.append(("core_publish", addresses))

    def core_withdraw(self, _core: Any, addresses: bytes, count: int) -> None:
        assert len(addresses) == 16 * count
        self.calls.append(("core_withdraw", addresses))

    def core_epoch(self, _core: Any, epoch: int, concern: Any) -> None:
        self.calls.append(("core_epoch", epoch, _concern(concern)))

    def core_next_questions(self, _core: Any, questions: Any, capacity: int, timeout_ms: int) -> int:
        count = 0
        try:
            fill = self.questions.get(timeout=min(timeout_ms, 50) / 1000)
            while True:
                fill(questions[count])
                count += 1
                if count == capacity:
                    break
                fill = self.questions.get_nowait()
        except queue.Empty:
            pass
        return count

    def core_answer(self, _core: Any, answer: Any) -> None:
        self.answers.put(
            {
                "id": answer.id,
                "epoch": answer.epoch,
                "verdict": answer.verdict,
                "reason": self._ffi.string(answer.reason).decode(),
            }
        )

    def core_events_listen(self, _core: Any, wanted: bool) -> None:
        self.calls.append(("core_events_listen", bool(wanted)))

    def core_next_events(self, _core: Any, out: Any, capacity: int, lost: Any) -> int:
        """A row of `events` is a kind, and values of the part that it has, "connection.id" say."""
        lost[0] += self.events_lost
        self.events_lost = 0
        count = 0
        size = self._ffi.sizeof("struct ns_event")
        while count < capacity and not self.events.empty():
            self._ffi.memmove(out + count, bytes(size), size)
            for name, value in self.events.get_nowait().items():
                *parts, field = name.split(".")
                setattr(reduce(getattr, parts, out[count]), field, value)
            count += 1
        return count

    def core_connections(self, _core: Any, out: Any, capacity: int) -> int:
        return self._rows(self.rows, out, capacity)

    def core_workload_stats(self, _core: Any, out: Any, capacity: int) -> int:
        if capacity:
            out[0].workload, out[0].connections = 1, len(self.rows)
            out[0].memory, out[0].limits.connections = 4096, 20
            out[0].limited[0].refused, out[0].limited[0].first_ms, out[0].limited[0].last_ms = 3, 2000, 1000
        return 1

    def core_anchors(self, _core: Any, out: Any, capacity: int) -> int:
        return self._rows(self.anchors, out, capacity)

    def core_stats(self, _core: Any, out: Any) -> None:
        out.epoch, out.workers = 3, 2
        out.strangers = self.strangers
        out.live_connections, out.live_tunnels = self.live, min(self.live, 1)
        out.questions, out.cache_hits, out.decision_p50_ns, out.decision_p99_ns = 7, 30, 40960, 98304


def make_native() -> tuple[Native, FakeLib]:
    """A fake compiled module and the library half of it."""
    ffi = make_ffi()
    lib = FakeLib(ffi)
    return Native(ffi, lib), lib
