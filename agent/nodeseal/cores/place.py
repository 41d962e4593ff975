"""Where cores run: in cgroups of their own, and from a copy of their files, so that they outlive the container of the
agent that starts them.

    /nodeseal/core-N            the cgroup of generation N, in every hierarchy; of another run directory than the usual
    /nodeseal-HASH/core-N       one it has the hash of that
    RUN_DIR/core-place.json     what an agent has asked for, for `nodeseal cleanup`, which has no configuration
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeseal.contracts.status import PlaceRow
from nodeseal.cores.core_files import CoreFilesError, core_files
from nodeseal.cores.image import Image, ImageError, remove_unused
from nodeseal.linux import cgroup_hierarchies, launcher
from nodeseal.linux.cgroup_hierarchies import OwnCgroup
from nodeseal.linux.errors import LinuxError
from nodeseal.local.core_settings import CoreSettings
from nodeseal.local.run_directory import CORE_PLACE, DEFAULT

log = logging.getLogger("nodeseal.agent")

_GENERATION = re.compile(r"core-([1-9][0-9]{0,8})")


class PlaceError(Exception):
    """A core cannot be run where it should be; one line."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a core is started in its place: what to run, and the descriptors that it needs beside its own."""

    command: list[str]
    descriptors: tuple[int, ...]


@contextlib.contextmanager
def launch(
    run_dir: Path, settings: CoreSettings, generation: int, command: Sequence[str], arguments: Sequence[str], ready: int
) -> Iterator[Launch]:
    """For the time of its start. `command`: how a core is run from where its files are; `ready`: the descriptor on
    which it says whether it has started. Raises PlaceError."""
    if not settings.own_cgroup and settings.image_directory is None:
        yield Launch([*command, *arguments], ())
        return
    image = None
    try:
        _note(run_dir, settings)
        cgroup = cgroup_of(run_dir, generation)
        joined = cgroup.make(settings.memory, settings.cpus) if settings.own_cgroup else []
        if settings.image_directory is not None:
            image = Image(settings.image_directory, core_files())
            command = image.files.command
        asked = {
            "cgroups": list(map(str, joined)),
            "root": str(image.root) if image is not None else None,
            "binds": [str(run_dir.absolute())],
            "ready_fd": ready,
            "command": [*command, *arguments],
            "environment": image.files.environment if image is not None else dict(os.environ),
        }
        program = [sys.executable, "-I", "-S", launcher.__file__, json.dumps(asked)]
        yield Launch(program, (image.lock,) if image is not None else ())
    except (CoreFilesError, ImageError, LinuxError) as error:
        raise PlaceError(str(error)) from None
    finally:
        if image is not None:
            image.close()


def prepare(settings: CoreSettings) -> Image | None:
    """What a core will be started from: made ahead, and kept until it is closed. Raises PlaceError."""
    if settings.image_directory is None:
        return None
    try:
        return Image(settings.image_directory, core_files())
    except (CoreFilesError, ImageError) as error:
        raise PlaceError(str(error)) from None


def cgroup_of(run_dir: Path, generation: int) -> OwnCgroup:
    """The cgroup of a core that has one of its own."""
    return OwnCgroup(f"{parent_of(run_dir)}/core-{generation}")


def described(run_dir: Path, generation: int) -> PlaceRow | None:
    """For the status; None when the core has no cgroup of its own."""
    cgroup = cgroup_of(run_dir, generation)
    usage = cgroup.usage()
    if usage is None:
        return None
    return PlaceRow(
        cgroup=cgroup.path,
        memory=usage.memory,
        memory_limit=usage.memory_limit,
        cpu_seconds=usage.cpu_seconds,
        cpu_limit=usage.cpu_limit,
    )


def bound(run_dir: Path, settings: CoreSettings, generation: int) -> None:
    """A core that runs gets the limits of now. Raises OSError."""
    if settings.own_cgroup:
        cgroup_of(run_dir, generation).limit(settings.memory, settings.cpus)


def lacked_memory(run_dir: Path, generation: int) -> bool:
    """Whether a core was killed because it needed more than its cgroup may have."""
    usage = cgroup_of(run_dir, generation).usage()
    return usage is not None and usage.killed > 0


def tidy(run_dir: Path, running: Iterable[int]) -> list[str]:
    """Removes what cores left that run no more: their cgroups, and copies of files that nobody holds. One line for each
    thing that was removed. Raises OSError."""
    noted = _noted(run_dir)
    if noted is None:
        return []
    gone, running = [], frozenset(running)
    for name in cgroup_hierarchies.children(parent_of(run_dir)):
        match = _GENERATION.fullmatch(name)
        if match is not None and int(match[1]) not in running:
            cgroup = cgroup_of(run_dir, int(match[1]))
            if cgroup.remove():
                gone.append(f"cgroup {cgroup.path}")
    if noted.image_directory is not None:
        gone += [f"files of cores in {path}" for path in remove_unused(noted.image_directory)]
    return gone


def forget(run_dir: Path) -> list[str]:
    """The same for good, once no core and no agent runs: what is left of it, one line each. Raises OSError."""
    noted = _noted(run_dir)
    if noted is None:
        return []
    left = [
        f"the cgroup {parent_of(run_dir)}/{name} is still in use"
        for name in cgroup_hierarchies.children(parent_of(run_dir))
    ]
    if noted.image_directory is not None:
        with contextlib.suppress(OSError):
            noted.image_directory.rmdir()  # another run directory may have it too
    if not left:
        (run_dir / CORE_PLACE).unlink(missing_ok=True)
    return left


def parent_of(run_dir: Path) -> str:
    """The cgroup in which the cores of a run directory have theirs."""
    if run_dir == DEFAULT:
        return "/nodeseal"
    return f"/nodeseal-{hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:12]}"


def _note(run_dir: Path, settings: CoreSettings) -> None:
    """Raises PlaceError."""
    draft = run_dir / f"{CORE_PLACE}.new"
    try:
        directory = settings.image_directory
        draft.write_text(json.dumps({"image_directory": str(directory) if directory is not None else None}))
        draft.replace(run_dir / CORE_PLACE)
    except OSError as error:
        raise PlaceError(f"cannot write {draft}: {error.strerror or error}") from None


def _noted(run_dir: Path) -> CoreSettings | None:
    """What was asked for; None when nothing was. A note that is damaged names no directory."""
    try:
        value = json.loads((run_dir / CORE_PLACE).read_text())
        directory = value["image_directory"]
        return CoreSettings(own_cgroup=True, image_directory=Path(directory) if isinstance(directory, str) else None)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return CoreSettings(own_cgroup=True)
