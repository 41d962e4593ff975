"""Learning that a cgroup was made; ordinary directories do as well."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nodeseal.linux import inotify
from nodeseal.linux.cgroup_watch import CgroupWatch

LONG = 3600.0


def play(story: Callable[[CgroupWatch], Awaitable[None]]) -> None:
    async def body() -> None:
        watch = CgroupWatch()
        try:
            await story(watch)
        finally:
            watch.close()
            watch.close()

    asyncio.run(asyncio.wait_for(body(), 30))


async def rested(watch: CgroupWatch, *directories: Path) -> None:
    """Watches, past the first return, which says that something may have been there before."""
    watch.watch(directories)
    await watch.wait(LONG)


def test_what_is_made_wakes(tmp_path: Path) -> None:
    async def story(watch: CgroupWatch) -> None:
        await rested(watch, tmp_path)
        (tmp_path / "vector.service").mkdir()
        await watch.wait(LONG)

    play(story)


def test_a_new_watch_wakes_for_what_was_made_before(tmp_path: Path) -> None:
    async def story(watch: CgroupWatch) -> None:
        (tmp_path / "vector.service").mkdir()
        watch.watch([tmp_path])
        await watch.wait(LONG)

    play(story)


def test_nothing_wakes_where_nobody_watches(tmp_path: Path) -> None:
    async def story(watch: CgroupWatch) -> None:
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
        await rested(watch, tmp_path / "one", tmp_path / "other")
        watch.watch([tmp_path / "one"])
        (tmp_path / "other" / "made").mkdir()
        waiting = asyncio.create_task(watch.wait(LONG))
        # What is made where it watches comes behind what it must not hear of.
        await asyncio.sleep(0)
        assert not waiting.done()
        (tmp_path / "one" / "made").mkdir()
        await waiting

    play(story)


def test_a_directory_that_is_made_anew_is_watched_again(tmp_path: Path) -> None:
    async def story(watch: CgroupWatch) -> None:
        slice_ = tmp_path / "system.slice"
        slice_.mkdir()
        await rested(watch, slice_)
        slice_.rmdir()
        watch.watch([slice_])
        # A directory between takes its inode's number on some file systems.
        (tmp_path / "other").mkdir()
        slice_.mkdir()
        await rested(watch, slice_)
        (slice_ / "vector.service").mkdir()
        await watch.wait(LONG)

    play(story)


def test_without_inotify_it_waits_its_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(**_options: bool) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(inotify, "INotify", refused)

    async def story(watch: CgroupWatch) -> None:
        watch.watch([tmp_path])
        await watch.wait(0.001)

    play(story)


def test_inotify_sees_a_directory_that_is_there_and_of_this_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert inotify.sees_all(tmp_path)
    assert not inotify.sees_all(tmp_path / "none")
    monkeypatch.setattr(inotify, "_REMOTE", {inotify.file_system_type(tmp_path)})
    assert not inotify.sees_all(tmp_path)
