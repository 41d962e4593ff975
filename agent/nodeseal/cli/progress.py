"""What a command waits for, if that takes longer than a second: a line on a terminal, gone when the wait is over."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

_PATIENCE_S = 1.0
_ERASE = "\r\x1b[K"


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows `text` and the seconds so far on standard error, from the first second on; nothing where that is no
    terminal. Nothing may be printed meanwhile."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(text, over), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _show(text: str, over: threading.Event) -> None:
    began = time.monotonic()
    shown = False
    while not over.wait(_PATIENCE_S):
        shown = True
        sys.stderr.write(f"{_ERASE}{text}, {time.monotonic() - began:.0f} s")
        sys.stderr.flush()
    if shown:
        sys.stderr.write(_ERASE)
        sys.stderr.flush()
