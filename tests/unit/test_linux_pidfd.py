"""Processes that are held by a descriptor."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from nodeseal.linux.pidfd import open_process


def test_process_is_held() -> None:
    os.close(open_process(os.getpid()))


def test_process_that_has_ended_is_told() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(60)
    with pytest.raises(ProcessLookupError):
        open_process(child.pid)


def test_number_that_is_a_threads_by_now_is_no_process() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with pytest.raises(ProcessLookupError):
            open_process(thread.native_id)
    finally:
        done.set()
        thread.join()
