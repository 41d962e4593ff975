"""Agents of one run directory: an active one that knows no hand-over, and who comes first."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path

import pytest

from nodeseal.api.server import ApiServer
from nodeseal.daemon import succession
from nodeseal.daemon.process_health import ALIVE, READY, ProcessHealth
from nodeseal.daemon.succession import NotPreparedError, Succession
from nodeseal.linux import lock_file
from nodeseal.linux.lock_file import LockFile
from nodeseal.local import run_directory
from support.agent_fakes import until


async def nothing() -> None:
    pass


def test_one_that_knows_no_hand_over_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def body() -> None:
        lock = LockFile(tmp_path / run_directory.AGENT_LOCK)
        server = ApiServer(tmp_path / run_directory.AGENT_SOCKET, [])
        await server.start()
        taking = asyncio.create_task(Succession(tmp_path, asyncio.Event()).take(nothing))
        async with asyncio.timeout(30):
            await until(lambda: "is of a version that cannot hand over: waiting for its end" in caplog.text)
            assert not taking.done()
            await server.stop()
            lock.release()
            held = await taking
        assert held is not None
        assert run_directory.standbys(tmp_path) == []

    asyncio.run(body())


def test_one_that_is_not_prepared_takes_over_where_nobody_is_left(tmp_path: Path) -> None:
    async def body() -> None:
        lock = LockFile(tmp_path / run_directory.AGENT_LOCK)

        async def cannot() -> None:
            assert run_directory.standbys(tmp_path) != []
            lock.release()
            raise NotPreparedError("no trust anchors")

        async with asyncio.timeout(30):
            assert await Succession(tmp_path, asyncio.Event()).take(cannot) is not None

    asyncio.run(body())


def test_one_that_let_go_stays_behind_one_that_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, real = [], lock_file.holder

    def holder(path: Path) -> int | None:
        looks.append(path)
        return real(path)

    monkeypatch.setattr(lock_file, "holder", holder)
    monkeypatch.setattr(succession, "_STANDBY_POLL_S", 0.01)

    async def body() -> None:
        # The one that comes has this lock from before it asks until it is active.
        comes = LockFile(tmp_path / run_directory.AGENT_NEXT)
        again = asyncio.create_task(Succession(tmp_path, asyncio.Event()).take_again())
        async with asyncio.timeout(30):
            await until(lambda: len(looks) > 3)
        assert not again.done()
        comes.release()
        async with asyncio.timeout(30):
            assert await again is not None

    asyncio.run(body())


def test_one_that_let_go_takes_over_once_the_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(succession, "_STANDBY_POLL_S", 0.01)
    caplog.set_level(logging.INFO)

    def full(_lock: LockFile, _note: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def body() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(LockFile, "write", full)
            again = asyncio.create_task(Succession(tmp_path, asyncio.Event()).take_again())
            async with asyncio.timeout(30):
                await until(lambda: "cannot take over again yet: [Errno 28]" in caplog.text or again.done())
        async with asyncio.timeout(30):
            assert await again is not None

    asyncio.run(body())


def test_lock_whose_note_cannot_be_written_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_lock: LockFile, _note: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(LockFile, "write", full)
        with pytest.raises(OSError, match="No space left"):
            LockFile(tmp_path / "lock")
    LockFile(tmp_path / "lock").release()


def test_ends_when_it_is_told_to(tmp_path: Path) -> None:
    async def body() -> None:
        lock = LockFile(tmp_path / run_directory.AGENT_LOCK)
        ending = asyncio.Event()
        succession = Succession(tmp_path, ending)
        asyncio.get_running_loop().call_soon(ending.set)
        async with asyncio.timeout(30):
            assert await succession.take(nothing) is None
            assert await succession.take_again() is None
        succession.close()
        assert run_directory.standby_locks(tmp_path) == []
        lock.release()

    asyncio.run(body())


def test_health_files_are_fresh_only_while_it_is_so(tmp_path: Path) -> None:
    async def body() -> None:
        directory = tmp_path / "health"
        directory.mkdir()
        (directory / READY).touch()  # of a process before this one
        health = ProcessHealth(directory)
        health.begin()
        assert sorted(path.name for path in directory.iterdir()) == [ALIVE]
        why: list[str | None] = ["not yet"]
        async with asyncio.timeout(30):
            with health.of(lambda: why[0]):
                beating = asyncio.create_task(health.run())
                await asyncio.sleep(0.1)
                assert not (directory / READY).exists()
                why[0] = None
                await until((directory / READY).exists)
            assert not (directory / READY).exists()
            assert (directory / ALIVE).exists()
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        assert list(directory.iterdir()) == []

    asyncio.run(body())
