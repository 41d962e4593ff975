"""The parts of the certificate service that need neither a network nor a disk: rates, the queue, the audit log."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nodeseal.authority.audit import WINDOW_S, Audit
from nodeseal.authority.audit_file import STANDARD_OUTPUT, AuditFile
from nodeseal.authority.connections import Connections
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.ledger import Entry, Issued, Kind, Ledger, Selection
from nodeseal.authority.rates import Rates
from nodeseal.authority.recorder import Recorder
from nodeseal.authority.refused import Refused
from nodeseal.authority.signing_queue import SigningQueue
from nodeseal.contracts.authority import ServiceWord
from nodeseal.mesh.address import ApplicationAddress
from support.patience import PATIENCE, wait_for

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ---- rates


def test_burst_is_granted_and_then_the_rate(clock: Clock) -> None:
    rates = Rates(2, 3, clock)
    assert [rates.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.5
    assert [rates.wait("a") for _ in range(2)] == [0, 0.5]
    clock.now += 1_000_000
    assert [rates.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_one_does_not_take_from_another(clock: Clock) -> None:
    rates = Rates(1, 1, clock)
    assert [rates.wait(who) for who in ("a", "b", "a")] == [0, 0, 1]


def test_looking_takes_nothing(clock: Clock) -> None:
    rates = Rates(1, 1, clock)
    assert [rates.peek("a") for _ in range(3)] == [0, 0, 0]
    assert [rates.wait("a"), rates.peek("a")] == [0, 1]


def test_number_of_askers_is_bounded(clock: Clock) -> None:
    rates = Rates(1, 1, clock, most=2)
    for who in ("a", "b", "a", "c"):
        rates.wait(who)
    assert [rates.peek("a"), rates.peek("c")] == [1, 1]
    assert rates.peek("b") == 0


# ---- the queue


def test_the_earliest_is_signed_first() -> None:
    async def scenario() -> list[str]:
        queue: SigningQueue[None] = SigningQueue(1, 100)
        began, go, done = threading.Event(), threading.Event(), []

        def block() -> None:
            began.set()
            go.wait()

        def work(name: str) -> Callable[[], None]:
            return lambda: done.append(name)

        blocked = asyncio.create_task(queue.sign(block, 0))
        await asyncio.to_thread(began.wait)
        later = [asyncio.create_task(queue.sign(work(name), by)) for name, by in (("c", 30), ("a", 10), ("b", 20))]
        gone = asyncio.create_task(queue.sign(work("gone"), 5))
        await asyncio.sleep(0)
        assert queue.waiting == 4
        gone.cancel()
        go.set()
        await asyncio.gather(blocked, *later)
        await queue.close()
        return done

    assert asyncio.run(scenario()) == ["a", "b", "c"]


def test_one_that_comes_as_the_last_is_answered_is_signed_too() -> None:
    async def scenario() -> list[int]:
        queue: SigningQueue[int] = SigningQueue(1, 100)
        async with asyncio.timeout(PATIENCE):
            found = [await queue.sign(lambda number=number: number, 0) for number in range(50)]
        await queue.close()
        return found

    assert asyncio.run(scenario()) == list(range(50))


def test_too_many_are_refused_and_told_when_to_come_again() -> None:
    async def scenario() -> Refused:
        queue: SigningQueue[None] = SigningQueue(1, 1)
        began, go = threading.Event(), threading.Event()

        def block() -> None:
            began.set()
            go.wait()

        first = asyncio.create_task(queue.sign(block, 0))
        await asyncio.to_thread(began.wait)
        second = asyncio.create_task(queue.sign(lambda: None, 0))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await queue.sign(lambda: None, 0)
        go.set()
        await asyncio.gather(first, second)
        await queue.close()
        return caught.value

    refused = asyncio.run(scenario())
    assert (refused.word, refused.retry_after is not None) == (ServiceWord.BUSY, True)


def test_what_fails_fails_for_its_asker_alone() -> None:
    async def scenario() -> list[object]:
        queue: SigningQueue[int] = SigningQueue(2, 100)
        outcomes = await asyncio.gather(
            queue.sign(lambda: 1, 0), queue.sign(lambda: 1 // 0, 0), queue.sign(lambda: 2, 0), return_exceptions=True
        )
        await queue.close()
        return list(outcomes)

    one, failed, two = asyncio.run(scenario())
    assert (one, two) == (1, 2)
    assert isinstance(failed, ZeroDivisionError)


# ---- the recorder


def entry(number: int) -> Entry:
    return Entry(
        Issued(f"{number:x}", Kind.WORKLOAD, "n", "i", number.to_bytes(32), NOW, NOW, "first", "certificate 1")
    )


def test_many_records_are_committed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    record = Ledger.record

    def counted(self: Ledger, entries: list[Entry], now: datetime) -> list[Refused | None]:
        sizes.append(len(entries))
        return record(self, entries, now)

    monkeypatch.setattr(Ledger, "record", counted)

    async def scenario() -> int:
        recorder = Recorder(lambda: NOW)
        await recorder.open(tmp_path)
        await asyncio.gather(*(recorder.record(entry(number), lambda: None) for number in range(500)))
        count = await recorder.ask(lambda ledger: ledger.count(Selection()))
        await recorder.close()
        return count

    assert asyncio.run(scenario()) == 500
    assert len(sizes) < 10


def test_record_of_one_who_has_gone_is_made_all_the_same(tmp_path: Path) -> None:
    told: list[int] = []

    async def scenario() -> int:
        recorder = Recorder(lambda: NOW)
        await recorder.open(tmp_path)
        gone = asyncio.create_task(recorder.record(entry(1), lambda: told.append(1)))
        await asyncio.sleep(0)
        gone.cancel()
        await recorder.record(entry(2), lambda: told.append(2))
        count = await recorder.ask(lambda ledger: ledger.count(Selection()))
        await recorder.close()
        return count

    assert asyncio.run(scenario()) == 2
    assert told == [1, 2], "the audit log has what the store has"


def test_nobody_waits_for_ever_when_recording_fails_in_a_way_that_nobody_thought_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    told: list[int] = []

    async def scenario() -> None:
        recorder = Recorder(lambda: NOW)
        await recorder.open(tmp_path)
        with monkeypatch.context() as broken:
            broken.setattr(Ledger, "record", fail)
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(AuthorityError, match="what was issued cannot be recorded"):
                    await recorder.record(entry(1), lambda: told.append(1))
        await recorder.check()
        await recorder.record(entry(2), lambda: told.append(2))
        await recorder.close()

    asyncio.run(scenario())
    assert told == [2]


def test_one_that_cannot_be_told_of_holds_up_no_other(tmp_path: Path) -> None:
    told: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError

    async def scenario() -> list[object]:
        recorder = Recorder(lambda: NOW)
        await recorder.open(tmp_path)
        async with asyncio.timeout(PATIENCE):
            found: list[object] = await asyncio.gather(
                recorder.record(entry(1), fail),
                recorder.record(entry(2), lambda: told.append(2)),
                return_exceptions=True,
            )
        await recorder.close()
        return found

    first, second = asyncio.run(scenario())
    assert isinstance(first, AuthorityError)
    assert (second, told) == (None, [2])


# ---- the audit log


class Lines(list[str]):
    """A sink."""

    def __call__(self, line: str) -> None:
        self.append(line)

    def shown(self) -> list[dict[str, object]]:
        """Without their times."""
        return [{name: value for name, value in json.loads(line).items() if name != "time"} for line in self]


def test_every_certificate_has_a_line(clock: Clock) -> None:
    lines = Lines()
    audit = Audit(lines, lambda: NOW, clock)
    for number in range(3):
        audit.issued(who="node1", serial=number, nothing=None)
    assert lines.shown() == [{"outcome": "issued", "who": "node1", "serial": number} for number in range(3)]
    assert json.loads(lines[0])["time"] == "2026-03-01T12:00:00.000+00:00"


def test_what_is_refused_again_and_again_is_counted(clock: Clock) -> None:
    lines = Lines()
    audit = Audit(lines, lambda: NOW, clock)
    for number in range(1_000):
        audit.refused("rate", "node1", number=number)
    audit.refused("rate", "node2")
    audit.refused("busy", "node1")
    first = {"outcome": "refused", "word": "rate", "who": "node1", "number": 0}
    assert lines.shown() == [first, {"outcome": "refused", "word": "rate", "who": "node2"}, lines.shown()[2]]
    clock.now += WINDOW_S
    audit.settle()
    assert lines.shown()[3:] == [{**first, "repeated": 999}]
    audit.refused("rate", "node1")
    assert len(lines) == 5


def test_log_of_many_strangers_is_bounded(clock: Clock) -> None:
    lines = Lines()
    audit = Audit(lines, lambda: NOW, clock)
    for number in range(50_000):
        who = f"10.0.{number // 256}.{number % 256}"
        audit.refused("token-unknown", who, who)
    audit.refused("rate", "node1")  # nodes are told apart all the same
    audit.settle(all_of_them=True)
    assert len(lines) == 103
    others = {"outcome": "refused", "word": "token-unknown", "who": "others", "repeated": 49_899}
    assert [others] == [line for line in lines.shown() if "repeated" in line]
    assert {"outcome": "refused", "word": "rate", "who": "node1"} in lines.shown()
    for number in range(2_000):
        audit.refused("rate", f"node{number}")
    assert len(lines) == 103 + 1_001


def test_log_goes_on_in_a_new_file_when_it_was_rotated(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditFile(path)
    log("one")
    wait_for(lambda: path.read_text() == "one\n", "the first line is written")
    path.rename(tmp_path / "audit.1")
    log("two")
    log.close()
    assert (path.read_text(), (tmp_path / "audit.1").read_text()) == ("two\n", "one\n")
    assert path.stat().st_mode & 0o077 == 0


def test_lines_wait_for_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditFile(path)
    room = [4, 0]  # bytes that the disk takes

    def write(descriptor: int, data: bytes) -> int:
        if not room:
            return os_write(descriptor, data)
        if (left := room.pop(0)) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os_write(descriptor, data[:left])

    os_write = os.write
    monkeypatch.setattr(os, "write", write)
    log("the first")
    wait_for(lambda: log.failure, "the failure is told")
    log("the second")
    log.close()
    assert path.read_text() == "the first\nthe second\n"
    assert log.failure is None


def test_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "audit.jsonl"
    log = AuditFile(path)
    path.unlink()
    directory.rmdir()
    log("one")
    wait_for(lambda: log.failure, "the failure is told")
    assert log.failure == f"the audit log {path} cannot be written: No such file or directory"
    directory.mkdir()
    log("two")
    log.close()
    assert log.failure is None
    assert path.read_text() == "one\ntwo\n"


def test_audit_log_may_be_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    log = AuditFile(STANDARD_OUTPUT)
    log("one")
    log("two")
    log.close()
    assert capfd.readouterr().out == "one\ntwo\n"
    os.write(1, b"it is open still")


def test_machine_without_ipv6_is_listened_at_by_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every address was asked for; one address of IPv6 is not there then."""
    usual = socket.socket

    def without_ipv6(family: int = -1, *more: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return usual(family, *more)

    async def story() -> None:
        connections = Connections(
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), asyncio.Protocol, 1, lambda _shown: None, lambda _a, _why: None
        )
        try:
            where = connections.listen(ApplicationAddress.parse("[::]:0"))
            assert str(where.address) == "0.0.0.0"
            with pytest.raises(OSError, match="not supported"):
                connections.listen(ApplicationAddress.parse("[::1]:0"))
        finally:
            connections.close()
            await connections.end()

    monkeypatch.setattr(socket, "socket", without_ipv6)
    asyncio.run(story())
