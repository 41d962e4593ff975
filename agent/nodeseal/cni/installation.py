"""The network plugin on the disk: its program, and its entry in the list of plugins that the container runtime uses.

What must hold at every moment: no list names a program that is not there, for then no pod starts, and none ends. So the
program comes before the entry and goes after it, each is put in place by one rename, and a program that anything still
names stays.

The runtime takes the first file of its directory, by name, that ends in .conf, .conflist or .json (libcni, ConfFiles).
A list gets the entry; of a single plugin's configuration a list is made, whose name stands before it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeseal.cni import network_list
from nodeseal.cni.network_list import ListError
from nodeseal.contracts.pod_start import PLUGIN, Entry, as_json
from nodeseal.linux import atomic_file, directories
from nodeseal.linux.atomic_file import replace_file
from nodeseal.local import run_directory
from nodeseal.local.pod_start import DEFAULT_BINARY_DIRECTORY, DEFAULT_CONFIG_DIRECTORY, PodStart

PROGRAM = Path(__file__).with_name(PLUGIN)
"""What is installed: built with the package (setup.py)."""
_SUFFIXES = (".conf", ".conflist", ".json")
_LIST_MAX = 1 << 20
_CONVERTED_NAMES = ("00-nodeseal.conflist", "000-nodeseal.conflist", "!nodeseal.conflist")


class InstallationError(Exception):
    """The plugin is not in place; one line that says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the directory as it was read. `path` is where it is itself, behind symbolic links."""

    name: str
    path: Path
    text: str
    status: os.stat_result


class Installation:
    """Of one run directory's agent. All methods block."""

    def __init__(self, settings: PodStart, run_dir: Path, program: Path = PROGRAM) -> None:
        self._settings = settings
        self._run_dir = run_dir
        self._program = program
        self._entry = as_json(entry_of(settings, run_dir))

    @property
    def directories(self) -> tuple[Path, Path]:
        """Where anything that happens may concern it."""
        return self._settings.config_directory, self._settings.binary_directory

    def settle(self) -> str | None:
        """Puts in place what is not. What was done, for people; None: all was as it should be. Raises
        InstallationError."""
        run_directory.remember_plugin(self._run_dir, *self.directories)
        directory = self._settings.config_directory
        names = [name for name in _names(directory) if not self._is_converted(directory / name)]
        if not names:
            raise InstallationError(
                f"{directory} has no list of network plugins yet: install the cluster's network, or correct "
                "'config_directory' of 'cni'"
            )
        done = [self._put_program()]
        first = _read(directory / names[0])
        if names[0].endswith(".conflist"):
            done.append(self._put_entry(first))
            done += [self._drop_converted(directory)]
        else:
            done.append(self._put_converted(first))
        done += [self._take_out(directory / name) for name in names[1:]]
        return "; ".join(filter(None, done)) or None

    def look(self) -> Iterator[str]:
        """What is not in place, one line each. Changes nothing."""
        directory, program = self._settings.config_directory, self._settings.binary_directory / PLUGIN
        if not self._program.is_file():
            yield f"this nodeseal has no program {PLUGIN}: install nodeseal again"
        try:
            names = [name for name in _names(directory) if not self._is_converted(directory / name)]
            first = _read(directory / names[0]) if names else None
            if first is None:
                yield f"{directory} has no list of network plugins: pods start without being enrolled before"
            elif first.name.endswith(".conflist") and not network_list.has_entry(first.text, self._is_ours):
                yield f"{first.path} does not name {PLUGIN}: the agent puts it there when it runs"
            named = any(network_list.names_plugin(_read(directory / name).text) for name in _names(directory))
            if named and not os.access(program, os.X_OK):
                yield f"{directory} names {PLUGIN}, but {program} is not there: no pod can start or end"
        except (InstallationError, ListError) as error:
            yield str(error)

    def _put_program(self) -> str | None:
        """Raises InstallationError."""
        target = self._settings.binary_directory / PLUGIN
        try:
            wanted = self._program.read_bytes()
        except OSError as error:
            raise InstallationError(
                f"{self._program} cannot be read ({error.strerror}): install nodeseal again"
            ) from None
        try:
            if target.read_bytes() == wanted and os.access(target, os.X_OK):
                return None
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InstallationError(f"{target} cannot be read: {error.strerror}") from None
        try:
            replace_file(target, wanted, 0o755)
        except OSError as error:
            raise InstallationError(
                f"{target} cannot be written ({error.strerror}): mount that directory writable, or correct "
                "'binary_directory' of 'cni'"
            ) from None
        return f"wrote {target}"

    def _put_entry(self, file: _File) -> str | None:
        """Raises InstallationError."""
        try:
            text = network_list.with_entry(file.text, self._entry, self._is_ours)
        except ListError as error:
            raise InstallationError(f"{file.path} is left as it is: {error}") from None
        return _write(file, text)

    def _put_converted(self, file: _File) -> str | None:
        """Raises InstallationError."""
        directory = self._settings.config_directory
        name = next((name for name in _CONVERTED_NAMES if name < file.name), None)
        if name is None:
            raise InstallationError(f"no file can stand before {file.path}: rename it so that it begins with a digit")
        try:
            text = network_list.converted(file.text, file.name, self._entry)
        except ListError as error:
            raise InstallationError(f"{file.path} is left as it is: {error}") from None
        self._drop_converted(directory, but=name)
        target = directory / name
        try:
            if target.read_text(encoding="utf-8") == text:
                return None
        except (OSError, UnicodeDecodeError):
            pass
        try:
            replace_file(target, text.encode(), file.status.st_mode & 0o777)
        except OSError as error:
            raise InstallationError(f"{target} cannot be written: {error.strerror}") from None
        return f"made {target} of {file.name}"

    def _drop_converted(self, directory: Path, but: str = "") -> str | None:
        """Raises InstallationError."""
        for name in _CONVERTED_NAMES:
            if name != but and self._is_converted(directory / name):
                return _unlink(directory / name)
        return None

    def _take_out(self, path: Path) -> str | None:
        """What the runtime does not look at is only tidied: it may be anything."""
        try:
            file = _read(path)
            return _write(file, network_list.without_entry(file.text, self._is_ours))
        except (InstallationError, ListError):
            return None

    def _is_ours(self, plugin: Mapping[str, Any]) -> bool:
        return bool(plugin.get("socket") == self._entry["socket"])

    def _is_converted(self, path: Path) -> bool:
        return path.name in _CONVERTED_NAMES and _is_converted(path, str(self._entry["socket"]))


def entry_of(settings: PodStart, run_dir: Path) -> Entry:
    """The plugin's entry in the list."""
    socket = run_dir.absolute() / run_directory.PLUGIN_SOCKET
    return Entry(socket=str(socket), on_failure=settings.on_failure, open_namespaces=settings.open_namespaces)


def remove(run_dir: Path) -> tuple[list[str], list[str]]:
    """Takes out whatever agents of this run directory have put in place, wherever that was: the entries first, the
    programs behind. (What was removed, what could not be), one line each. Needs no agent and no configuration."""
    socket = str(run_dir.absolute() / run_directory.PLUGIN_SOCKET)
    removed: list[str] = []
    failed: list[str] = []
    places = [*run_directory.remembered_plugins(run_dir), (DEFAULT_CONFIG_DIRECTORY, DEFAULT_BINARY_DIRECTORY)]
    for configurations, programs in dict.fromkeys(places):
        try:
            found = _remove_entries(configurations, socket)
            removed += found
            _remove_drafts(configurations, programs)
            if found or (configurations, programs) in places[:-1]:
                removed += _remove_program(configurations, programs)
        except InstallationError as error:
            failed.append(str(error))
    return removed, failed


def _remove_entries(directory: Path, socket: str) -> list[str]:
    """Raises InstallationError."""

    def is_ours(plugin: Mapping[str, Any]) -> bool:
        return bool(plugin.get("socket") == socket)

    done = []
    for name in _names(directory):
        path = directory / name
        if name in _CONVERTED_NAMES and _is_converted(path, socket):
            done.append(_unlink(path))
            continue
        file = _read(path)
        if not network_list.names_plugin(file.text):
            continue
        try:
            text = network_list.without_entry(file.text, is_ours)
        except ListError:
            continue  # a text that is no list is no entry of ours; it keeps the program, see below
        if _write(file, text) is not None:
            done.append(f"{PLUGIN} from {file.path}")
    return done


def _remove_drafts(*directories: Path) -> None:
    """Without a word: of an agent that was killed while it wrote. One that writes now begins again."""
    for directory in directories:
        with contextlib.suppress(OSError):
            for path in atomic_file.drafts(directory):
                path.unlink()


def _remove_program(configurations: Path, programs: Path) -> list[str]:
    """Raises InstallationError while anything still names it."""
    program = programs / PLUGIN
    if not program.exists():
        return []
    for name in _names(configurations):
        text = _read(configurations / name).text
        if not network_list.names_plugin(text):
            continue
        if _is_of_another(text):
            return []
        raise InstallationError(
            f"{program} stays: {configurations / name} still names it, and without it no pod could start or end; "
            "take it out there, then run cleanup again"
        )
    return [_unlink(program)]


def _is_of_another(text: str) -> bool:
    """Whether the agent of another run directory has its entry there."""
    try:
        return network_list.has_entry(text, lambda _plugin: True)
    except ListError:
        return False


def _names(directory: Path) -> list[str]:
    """The files that the runtime would look at, in its order. Raises InstallationError."""
    try:
        return sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIXES))  # noqa: PTH208
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InstallationError(f"{directory} cannot be read: {error.strerror}") from None


def _read(path: Path) -> _File:
    """Raises InstallationError."""
    try:
        real = path.resolve(strict=True)
        with real.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_LIST_MAX + 1)
        if len(data) > _LIST_MAX:
            raise InstallationError(f"{path} is left as it is: it is larger than 1 MiB")
        return _File(path.name, real, data.decode(), status)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InstallationError(f"{path} cannot be read ({why}): is what it links to mounted here?") from None
    except UnicodeDecodeError:
        raise InstallationError(f"{path} is left as it is: it is no UTF-8") from None


def _write(file: _File, text: str) -> str | None:
    """Raises InstallationError."""
    if text == file.text:
        return None
    try:
        replace_file(file.path, text.encode(), 0, file.status)
    except OSError as error:
        raise InstallationError(f"{file.path} cannot be written: {error.strerror or error}") from None
    return f"changed {file.path}"


def _unlink(path: Path) -> str:
    """Raises InstallationError."""
    try:
        path.unlink()
        directories.sync(path.parent)
    except OSError as error:
        raise InstallationError(f"{path} cannot be removed: {error.strerror}") from None
    return str(path)


def _is_converted(path: Path, socket: str) -> bool:
    """Whether it is a list that was made for this socket."""
    try:
        text = _read(path).text
        ours = network_list.converted_from(text) is not None
        return ours and network_list.has_entry(text, lambda plugin: plugin.get("socket") == socket)
    except (InstallationError, ListError, json.JSONDecodeError):
        return False
