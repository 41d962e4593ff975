"""Standard output that may be full, gone or closed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from nodeseal.cli.errors import CommandError


class OutputError(CommandError):
    """What a command printed could not be written."""


class _Guarded:
    """A stream whose failures to write are OutputErrors. BrokenPipeError stays what it is."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is None:  # closed before this process began
            raise OutputError("cannot write to standard output: it is closed")
        with _failures():
            return self._stream.write(text)

    def flush(self) -> None:
        if self._stream is not None:
            with _failures():
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """What is printed inside is written by the end. Raises OutputError, or BrokenPipeError when its reader has gone."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A file's name may hold what the locale's encoding cannot say.
        sys.stdout.reconfigure(errors="backslashreplace")
    stream = cast(TextIO, _Guarded(sys.stdout))
    with contextlib.redirect_stdout(stream):
        try:
            yield
        except OutputError:
            raise  # what is left cannot be written either
        except BaseException:
            stream.flush()
            raise
        stream.flush()


def print_json(value: object) -> None:
    """A message of nodeseal.contracts.output, or what is JSON already."""
    import msgspec

    print(json.dumps(msgspec.to_builtins(value), indent=2))


def give_up() -> None:
    """Nothing more is written, not even by Python as it ends, which would complain of it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror or error}") from None
