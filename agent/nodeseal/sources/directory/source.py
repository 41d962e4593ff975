"""The mesh state from a directory of files that is watched. docs/mesh-state.md is the reference of its format.

A bad edit never disturbs what is running: the last good state stays, and what is wrong is told. Publications (which
node has enrolled what) are followed even then, because they change without anybody's edit.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from nodeseal.documents.document import Content, Problem, read_content, shown_path, why_none
from nodeseal.mesh.model import Mesh, Workload
from nodeseal.mesh.revocation import REVOCATIONS
from nodeseal.mesh.trust import Trust
from nodeseal.sources.directory import claim
from nodeseal.sources.directory.claim import DirectoryClaim
from nodeseal.sources.directory.publications import (
    ENROLLED,
    SUFFIX,
    Publication,
    phases,
    publish,
    read_publication,
)
from nodeseal.sources.directory.state import StateCache, StateFile, combine, digest_of
from nodeseal.sources.directory.watch import DirectoryWatch, is_lookalike, is_state_file
from nodeseal.sources.heap import Heap
from nodeseal.sources.source import (
    Concern,
    Description,
    MeshStateError,
    Publishers,
    Reference,
    Source,
    SourceAwayError,
    StateProblem,
)

MAX_TOTAL_BYTES = 64 * 1024 * 1024
"""Most that all files of the mesh state may hold together."""


def load(directory: Path) -> Mesh:
    """The mesh state as it is at this moment.

    Workloads that their node has published are ENROLLED, all others ABSENT. A publication that cannot be read counts as
    nodeseal.sources.directory.publications says, and raises nothing; DirectorySource tells of it.

    Raises MeshStateError with everything that is wrong with the state's files.
    """
    mesh, problems = examine(directory)
    error = _error(problems)
    if mesh is None or not error.used:
        raise error
    return mesh


def examine(directory: Path) -> tuple[Mesh | None, list[Problem]]:
    """(the mesh state as it is, as in `load`, or None if it cannot be used; everything that is wrong)."""
    return _Reader(directory).take(_Snapshot(directory, frozenset()))


def look(directory: Path) -> tuple[Mesh, Publishers]:
    """The mesh state as it is, and what the nodes say of their CAs. Raises MeshStateError when it cannot be used."""
    reader = _Reader(directory)
    mesh, problems = reader.take(_Snapshot(directory, frozenset()))
    error = _error(problems)
    if mesh is None or not error.used:
        raise error
    return mesh, {name: one.trust for name, one in reader.publications.items()}


class DirectorySource(Source):
    """The mesh state in a directory, followed for one node of it."""

    def __init__(self, directory: Path, node: str, run_dir: Path) -> None:
        """`run_dir`: the run directory of the node's agent, as which it claims the node."""
        self.directory = directory
        self.node = node
        self.publishers: Publishers = {}
        self._run_dir = run_dir

    @classmethod
    def at(cls, reference: Reference, run_dir: Path) -> Self:
        """The one that gave this reference. Raises ValueError when no such source did."""
        if reference.keys() != {"directory", "node"}:
            raise ValueError(f"no source of the mesh state is known by {dict(reference)}")
        return cls(Path(reference["directory"]), reference["node"], run_dir)

    def describe(self) -> Description:
        """See Source.describe."""
        return Description(str(self.directory), str(self.directory / ENROLLED), "share that directory with it")

    def reference(self) -> Reference:
        """See Source.reference."""
        return {"directory": str(self.directory), "node": self.node}

    def verify(self) -> Iterator[str]:
        """See Source.verify."""
        if not self.directory.is_dir():
            yield f"{self.directory} is not a directory; create it or correct the path"
            return
        publications = self.directory / ENROLLED
        where = publications if publications.exists() else self.directory
        if not os.access(where, os.R_OK | os.W_OK | os.X_OK):
            yield (
                f"{where} cannot be written, where the agent tells what it has enrolled; correct its permissions or "
                "mount"
            )
            return
        refusal = claim.refusal(self.directory, self.node, self._run_dir)
        if refusal is not None:
            yield refusal

    async def load(self) -> Mesh:
        """See Source.load and load()."""
        return await asyncio.to_thread(load, self.directory)

    async def claim(self) -> DirectoryClaim:
        """See Source.claim. At once: a lock on a file."""
        return DirectoryClaim(self.directory, self.node, self._run_dir)

    async def publish(self, workloads: Iterable[Workload], trust: Trust | None = None) -> bool:
        """See Source.publish. Their names alone are published: the directory has the rest."""
        names = [workload.key for workload in workloads]
        return await asyncio.to_thread(publish, self.directory, self.node, names, trust)

    async def withdraw(self) -> str | None:
        """See Source.withdraw. SourceAwayError: the directory is not there."""
        if not self.directory.is_dir():
            raise SourceAwayError(f"{self.directory} is not there")
        withdrawn = await asyncio.to_thread(claim.withdraw_own, self._run_dir, self.directory, self.node)
        return str(withdrawn) if withdrawn is not None else None

    async def changes(self) -> AsyncIterator[Mesh | MeshStateError]:
        """See Source.changes."""
        watch = DirectoryWatch(self.directory, ENROLLED)
        reader, heap = _Reader(self.directory), Heap()
        told: Mesh | None = None
        complained: Sequence[Problem] = ()
        try:
            while True:
                # Reading a large state takes long: in a thread, so that whoever follows it does not stand still.
                snapshot = [await asyncio.to_thread(_Snapshot, self.directory, watch.held)]
                if watch.settled():
                    mesh, problems = await asyncio.to_thread(_take, reader, heap, snapshot)
                    publishers = {name: one.trust for name, one in reader.publications.items()}
                    if publishers != self.publishers:
                        self.publishers = publishers
                    news = mesh is not None and (mesh is not told or (bool(complained) and not problems))
                    worse = bool(problems) and (news or problems != complained)
                    told, complained = mesh, problems
                    if news and mesh is not None:
                        yield mesh
                    if worse:
                        yield _error(problems)
                await watch.changed()
        finally:
            watch.close()


def _error(problems: Iterable[Problem]) -> MeshStateError:
    return MeshStateError(StateProblem(str(problem), _concern_of(problem)) for problem in problems)


def _concern_of(problem: Problem) -> Concern:
    if problem.file.startswith(f"{ENROLLED}/"):
        return Concern.PUBLICATION
    return Concern.UNREAD if problem.passed_over else Concern.STATE


class _Snapshot:
    """The content of all files at one moment, unparsed."""

    def __init__(self, directory: Path, held: frozenset[Path]) -> None:
        self.held = held
        self.problems: list[Problem] = []
        self.publications: list[Content] | None = None
        """None if there is a directory of publications and it cannot be listed."""
        self.state: list[Content] | None = None
        """None if the directory cannot be listed."""
        self._left = MAX_TOTAL_BYTES
        self.state = self._read(directory, shown_path(directory), "")
        if self.state is not None:
            self.publications = self._read(directory / ENROLLED, f"{ENROLLED}/", f"{ENROLLED}/")

    def _read(self, directory: Path, shown: str, prefix: str) -> list[Content] | None:
        try:
            with os.scandir(directory) as entries:
                found = sorted((entry.name, _is_directory(entry)) for entry in entries)
        except OSError as error:
            if prefix and isinstance(error, FileNotFoundError):
                return []
            self.problems.append(Problem(shown, 0, "", "a directory that can be read", why_none(error)))
            return None
        contents = []
        for name, is_directory in found:
            if (why := _why_passed_over(directory, name, prefix, is_directory=is_directory)) is not None:
                title = prefix + shown_path(name) + ("/" if is_directory else "")
                self.problems.append(Problem(title, 0, "", *why, passed_over=True))
                continue
            if not is_state_file(name):
                continue
            path, title = directory / name, prefix + shown_path(name)
            if path in self.held:
                contents.append(Content(path, title, None))
                continue
            content = read_content(path, title)
            if content.data is None and not os.path.lexists(path):
                continue
            self._left -= len(content.data or b"")
            if self._left < 0:
                expected = f"at most {MAX_TOTAL_BYTES >> 20} MiB in all files"
                content = Content(path, title, None, (Problem(title, 0, "", expected, "more"),))
            contents.append(content)
        return contents


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _why_passed_over(directory: Path, name: str, prefix: str, *, is_directory: bool) -> tuple[str, str] | None:
    """(what is expected, what was found) of something that its author may take for a part of the mesh state, and that
    is none; None for everything else. Hidden files, and copies that editors leave, are nobody's intention."""
    if name.startswith("."):
        return None
    if prefix:
        odd = not is_directory and is_state_file(name) and not name.endswith(SUFFIX)
        return (f"publications as <node>{SUFFIX}", "another suffix: it is not read") if odd else None
    if is_directory:
        if name == ENROLLED or is_state_file(name):
            return None  # what cannot be read as a file is told as that
        try:
            with os.scandir(directory / name) as entries:
                inside = any(is_state_file(entry.name) for entry in entries)
        except OSError:
            return None
        found = "some in a directory below it: they are not read"
        return ("the files of the mesh state in the directory itself", found) if inside else None
    found = "another suffix: it is not read"
    return ("the files of the mesh state as *.yaml, *.yml or *.json", found) if is_lookalike(name) else None


class _Reader:
    """Makes models of snapshots, keeping what was good in those before."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cache = StateCache()
        self.files: list[StateFile] | None = None
        self._combined: list[Problem] = []
        self._mesh: Mesh | None = None
        self.publications: dict[str, Publication] = {}
        """By node."""
        self._digests: dict[str, bytes] = {}
        """Of the publications' files, by node."""
        self._listed = False

    def take(self, snapshot: _Snapshot) -> tuple[Mesh | None, list[Problem]]:
        """The best model there is (None: there never was a good state; the same object: it is as it was) and everything
        that is wrong now."""
        problems = list(snapshot.problems)
        last = mesh = self._mesh
        if snapshot.state is not None:
            combined, more = self._take_state(snapshot.state, snapshot.held)
            problems += more
            mesh = combined or mesh
        self._take_publications(snapshot, mesh)
        if mesh is not None:
            wanted, more = phases(mesh, self.publications.values())
            problems += more
            # What has not changed stays the same object, in memory once and found equal at once.
            mesh = mesh.with_phases(wanted, like=last)
            self._mesh = last if mesh == last else mesh
        return self._mesh, problems

    def _take_state(self, contents: list[Content], held: frozenset[Path]) -> tuple[Mesh | None, list[Problem]]:
        """(the model if the files have changed and are good, what is wrong with them)."""
        files = []
        for content in contents:
            file = self._cache.last(content.path) if content.path in held else self._cache.parse(content)
            if file is not None:
                files.append(file)
        self._cache.keep_only(content.path for content in contents)
        if self.files is None or len(files) != len(self.files) or any(map(_is_not, files, self.files)):
            self.files = files
            combined = combine(shown_path(self._directory), files)
            if isinstance(combined, Mesh):
                self._combined = []
                return combined, []
            self._combined = combined
        return None, self._combined

    def _take_publications(self, snapshot: _Snapshot, mesh: Mesh | None) -> None:
        if snapshot.publications is None:
            # What was known stays known. If nothing ever was, every node may have published: not the same as none.
            if snapshot.state is not None and mesh is not None and not self._listed:
                nodes = {workload.node for workload in mesh.workloads.values()}
                self.publications = {node: Publication(node, f"{ENROLLED}/{node}.yaml", None) for node in nodes}
            return
        self._listed = True
        current: dict[str, Publication] = {}
        digests: dict[str, bytes] = {}
        for content in snapshot.publications:
            node = content.path.stem
            last, digest = self.publications.get(node), self._digests.get(node)
            if content.path not in snapshot.held and (digest is None or digest != digest_of(content)):
                last, digest = read_publication(content, last), digest_of(content)
            if last is not None:
                current[node] = last
                if digest is not None:
                    digests[node] = digest
        self.publications, self._digests = current, digests


def _take(reader: _Reader, heap: Heap, snapshots: list[_Snapshot]) -> tuple[Mesh | None, list[Problem]]:
    """Takes the one snapshot out of the list, so that nobody holds on to it."""
    before = reader.files
    with heap.reading():
        result = reader.take(snapshots.pop())
        if result[0] is not None and reader.files is not before:
            before = None
            serials = sum(len(one.serials) for one in result[0].of(REVOCATIONS).values())
            heap.settle(len(result[0].workloads) + serials)
    return result


def _is_not(one: object, other: object) -> bool:
    return one is not other
