"""Which files a core needs: the interpreter, its library, the packages that the core imports, and what these are linked
with. Whatever a core may import later is among them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nodeseal.linux import elf, openssl
from nodeseal.linux.openssl import OpenSSLError

PACKAGES = ("nodeseal", "msgspec", "_cffi_backend")
"""What a core imports that is not of the interpreter's own library."""
_ROOMS = frozenset({"contracts", "linux", "local", "mesh", "splice"})
"""Of nodeseal's rooms, those that a core imports from; of cli it has its own entry alone."""
_ENTRY = ("cli/__init__.py", "cli/main.py")
_LEFT_OUT = frozenset(
    {
        "dist-packages", "site-packages", "__pycache__",
        "curses", "dbm", "distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "pydoc_data", "sqlite3", "test",
        "tests", "tkinter", "turtle", "turtledemo", "unittest", "venv", "wsgiref", "xml", "xmlrpc",
    }
)  # fmt: skip
"""Of the interpreter's library, what a core can have no use for."""
_EXTENSIONS_LEFT_OUT = re.compile(
    r"(_codecs_(cn|hk|iso2022|jp|kr|tw)|_ctypes_test|_curses\w*|_dbm|_gdbm|_sqlite3|_test\w*|_tkinter|_xx\w*|nis|ossaudiodev"
    r"|readline|spwd|xx\w*)\."
)
_BESIDES = ("/etc/ld.so.cache", "/etc/localtime")
"""How libraries are found, and the time of the log."""
_DLOPENED = "libgcc_s.so.1"
"""The C library loads it when a thread ends."""
_LINKS_MAX = 40


class CoreFilesError(Exception):
    """What a core needs is not there; one line."""


@dataclass(slots=True)
class FileSet:
    """Files by their paths, with every symbolic link on the way to them, so that each is found by the name it has."""

    files: set[Path] = field(default_factory=set)
    links: dict[Path, str] = field(default_factory=dict)
    _directories: dict[Path, Path] = field(default_factory=dict)

    def add(self, path: Path, followed: int = 0) -> Path:
        """Where it really is. Raises OSError when there is no such file."""
        if followed > _LINKS_MAX:
            raise OSError(f"too many symbolic links: {path}")
        place = self._directory(path.parent, followed) / path.name
        if place.is_symlink():
            return self.add(self._follow(place), followed + 1)
        place.stat()
        self.files.add(place)
        return place

    def _directory(self, path: Path, followed: int) -> Path:
        if path == path.parent:
            return path
        if path not in self._directories:
            place = self._directory(path.parent, followed) / path.name
            if place.is_symlink():
                place = self._directory(self._follow(place), followed + 1)
            self._directories[path] = place
        return self._directories[path]

    def _follow(self, link: Path) -> Path:
        self.links[link] = str(link.readlink())
        return Path(os.path.normpath(link.parent / self.links[link]))


@dataclass(frozen=True, slots=True)
class CoreFiles:
    """What a core needs, and how it is run with nothing else."""

    found: FileSet
    command: tuple[str, ...]
    environment: dict[str, str]


@functools.cache
def core_files() -> CoreFiles:
    """Of the interpreter that runs this, as they are found when it is first asked. Raises CoreFilesError."""
    try:
        return _core_files()
    except (OSError, ValueError) as error:
        raise CoreFilesError(f"cannot find out what a core needs: {error}") from None


def _core_files() -> CoreFiles:
    found = FileSet()
    program = Path(getattr(sys, "_base_executable", sys.executable)).absolute()
    linker = elf.interpreter(program)
    found.add(linker)
    linked = [found.add(program)]
    for name in dict.fromkeys(sysconfig.get_path(one, vars=_base()) for one in ("stdlib", "platstdlib")):
        for path in _tree(Path(name)):
            if path.suffix != ".so":
                found.add(path)
            elif elf.libraries(path, linker) is not None:
                # One whose libraries are not installed could not be imported here either.
                linked.append(found.add(path))
    places = []
    for package in PACKAGES:
        top, paths = _package(package)
        places.append(str(top))
        linked += [path for path in map(found.add, paths) if path.suffix == ".so"]
    linked += [found.add(path) for path in _of_openssl() if path.suffix == ".so"]
    for path in linked:
        for library in elf.libraries(path, linker) or ():
            found.add(library)
            if library.name.startswith("libc.so") and (library.parent / _DLOPENED).exists():
                found.add(library.parent / _DLOPENED)
    for path in (Path(name) for name in _BESIDES):
        if path.exists():
            found.add(path)
    kept = {name: value for name, value in os.environ.items() if name.startswith(("LC_", "LANG", "TZ", "OPENSSL_"))}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places)), "PYTHONDONTWRITEBYTECODE": "1"}
    # Without site (-S): nothing is to be looked for that is not here.
    return CoreFiles(found, (str(program), "-S", "-s", "-m", "nodeseal", "core"), environment)


def _base() -> dict[str, str]:
    """For sysconfig: a virtual environment has no library of its own."""
    return {
        "base": sys.base_prefix,
        "platbase": sys.base_exec_prefix,
        "installed_base": sys.base_prefix,
        "installed_platbase": sys.base_exec_prefix,
    }


def _tree(top: Path) -> Iterator[Path]:
    """The files below it that may be imported, compiled ones of this interpreter included."""
    for directory, names, files in os.walk(top):
        names[:] = [name for name in names if name not in _LEFT_OUT and not name.startswith("config-")]
        for path in (Path(directory, name) for name in files):
            if path.stem in _LEFT_OUT:
                continue
            if path.suffix == ".so":
                if _EXTENSIONS_LEFT_OUT.match(path.name) is None:
                    yield path
            elif path.suffix == ".py":
                yield path
                compiled = Path(importlib.util.cache_from_source(path))
                if compiled.exists():
                    yield compiled


def _package(name: str) -> tuple[Path, list[Path]]:
    """(the directory in which it is found, its files). Raises CoreFilesError."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise CoreFilesError(f"the Python package {name}, which a core needs, is not installed")
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return origin.parent, [origin]
    top = origin.parent
    if name != "nodeseal":
        return top.parent, list(_tree(top))
    rooms = [path for room in sorted(_ROOMS) for path in _tree(top / room)]
    top_level = [path for path in _tree(top) if path.parent == top]
    return top.parent, [*rooms, *top_level, *(top / entry for entry in _ENTRY)]


def _of_openssl() -> Iterable[Path]:
    """Its configuration and its modules."""
    try:
        return [*openssl.configuration_files(), *sorted(openssl.modules_directory().glob("*.so"))]
    except OpenSSLError:
        return []
