"""What was known of the cluster, on the node: an agent that starts while the API server is away goes on from it.

One file a kind of objects, in the run directory, for root alone. It holds what the agent reads of them and nothing
else: no Secret is among them. The first line says what it is, each further line is an object. A file that is not whole,
or of another form, is passed over: then the agent waits for the API server.

    {"form": 1, "agent": "0.1.0", "kind": "pods", "version": "4711", "objects": 2}
    {"metadata": {...}}
    {"metadata": {...}}

An agent of another version may read more of an object than was written: it lists that kind anew, and only as long as it
cannot, what is there counts.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from nodeseal import __version__
from nodeseal.local.run_directory import cluster_copy

log = logging.getLogger("nodeseal.agent")

T = TypeVar("T", bound=Struct)

_FORM = 1
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_AT_ONCE = 200
"""Objects that are encoded without letting the event loop have the interpreter: a millisecond."""


class _Head(Struct):
    form: int
    agent: str
    kind: str
    version: str
    objects: int


@dataclass(frozen=True, slots=True)
class Saved(Generic[T]):
    """`version`: from where they can be followed on; "": they have to be listed."""

    items: Sequence[T]
    version: str
    size: int
    """Of the file, in bytes."""


def save(directory: Path, kind: str, items: Sequence[T], version: str) -> int:
    """Whole or not at all. Takes time for all of them: to be called in a thread. The size in bytes. Raises OSError."""
    path = cluster_copy(directory, kind)
    draft = path.with_name(f".{path.name}.new")
    encoder = msgspec.json.Encoder()
    try:
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, _NEW, 0o600), "wb") as file:
            file.write(encoder.encode(_Head(_FORM, __version__, kind, version, len(items))) + b"\n")
            rest = iter(items)
            while some := list(islice(rest, _AT_ONCE)):
                file.write(encoder.encode_lines(some))
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    return size


def load(directory: Path, kind: str, type_: type[T]) -> Saved[T] | None:
    """None when there is nothing that can be used. To be called in a thread."""
    path = cluster_copy(directory, kind)
    try:
        with path.open("rb") as file:
            head = msgspec.json.decode(file.readline(), type=_Head)
            if head.form != _FORM or head.kind != kind:
                raise ValueError(f"it is of form {head.form}, of {head.kind!a}")
            items = list(_decoded(file, type_))
            size = file.tell()
        if len(items) != head.objects:
            raise ValueError(f"it has {len(items)} objects of {head.objects}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be used, so the API server is waited for: %s", path, error)
        return None
    return Saved(items, head.version if head.agent == __version__ else "", size)


def _decoded(lines: Iterable[bytes], type_: type[T]) -> Iterable[T]:
    decoder = msgspec.json.Decoder(type_)
    return (decoder.decode(line) for line in lines)
