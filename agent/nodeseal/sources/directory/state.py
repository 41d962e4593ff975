"""The mesh state's files: each is parsed by itself, then all are put together into one model.

A file's result is kept under the digest of its content, so that an edit of one file, or another node's publication,
does not parse the others again.
"""

from collections.abc import Hashable, Iterable
from contextlib import suppress
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from nodeseal.documents.bulk import NotTakenError, read_bulk
from nodeseal.documents.document import (
    Broken,
    Content,
    List,
    Node,
    Problem,
    Problems,
    describe,
    read_document,
    shown,
)
from nodeseal.documents.reader import Placed, Stated
from nodeseal.documents.readers import READERS
from nodeseal.documents.schema import Fields
from nodeseal.mesh.kinds import clashes
from nodeseal.mesh.model import KINDS, Mesh, MeshDifference, MeshError
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain

JSON_SUFFIX = ".json"


class StateFile:
    """What one file of the mesh state says, or what is wrong with it."""

    def __init__(self, content: Content, earlier: "StateFile | None" = None) -> None:
        """Takes any content. Never raises. `earlier`: what the file said before."""
        self.name = content.name
        self._clear()
        problems = Problems(self.name)
        problems.extend(content.problems)
        if content.data is not None:
            if content.path.suffix.lower() == JSON_SUFFIX:
                self._read_json(content.data, problems)
            else:
                self._read(content.data, problems)
        self.problems: tuple[Problem, ...] = tuple(problems.found)
        if earlier is not None and not self.problems:
            for kind, placed in self.lists.items():
                _share(placed, earlier.lists[kind])

    def _clear(self) -> None:
        self.trust_domain: str | None = None
        self.trust_domain_line: int | None = None
        """Where the file states one, right or wrong; 0: nobody knows; None: it does not."""
        self.lists: dict[str, Placed[Any]] = {kind: Placed(self.name, kind) for kind in READERS}
        """What it lists of each kind."""

    def _read_json(self, data: bytes, problems: Problems) -> None:
        try:
            bulk = read_bulk(data)
        except NotTakenError as error:
            if not error.final:
                # JSON is YAML too, and whoever reads that tells everything that is wrong, with its line.
                self._read(data, problems)
            if error.final or (error.sure and not problems.count):
                problems.add(error.line, error.field, error.expected, error.found)
            return
        for kind, items in bulk.lists.items():
            self.lists[kind] = Placed(self.name, kind, items)
        if bulk.trust_domain is not None:
            self._take_trust_domain(problems, 0, bulk.trust_domain)

    def _read(self, data: bytes, problems: Problems) -> None:
        def on_item(field_name: str, index: int, node: Node) -> None:
            if field_name in READERS:
                item = READERS[field_name].read(problems, node, f"{field_name}[{index}]")
                self.lists[field_name].add(node, item)

        root = read_document(data, problems, on_item)
        if root is None:
            return
        fields = Fields(problems, root)
        # The lists were taken item by item; what is left to see is whether they are lists.
        for name in READERS:
            expected = f"a list of {name}"
            node = fields.node(name, expected, required=False)
            if node is not None and not isinstance(node, List | Broken):
                problems.add(node.line, name, expected, describe(node))
        before = problems.count
        domain = fields.text("trust_domain", "")
        if domain and problems.count == before:
            self._take_trust_domain(problems, fields.line_of("trust_domain"), domain)
        fields.close()

    def _take_trust_domain(self, problems: Problems, line: int, domain: str) -> None:
        self.trust_domain_line = line
        try:
            check_trust_domain(domain)
            self.trust_domain = domain
        except SpiffeIdError:
            problems.add(line, "trust_domain", "1 to 255 characters of a-z, 0-9, '.', '_' and '-'", shown(domain))


def _share(placed: Placed[Any], earlier: Placed[Any]) -> None:
    """Takes the earlier list's object for every one that is equal to it, so that models that follow each other share
    what has not changed."""
    known: dict[Hashable, Any] = {}
    for index, item in placed.valid():
        same = earlier.items[index] if index < len(earlier.items) else None
        if same is None or same.key != item.key:
            # Something was put in or taken out before it.
            known = known or {one.key: one for _, one in earlier.valid()}
            same = known.get(item.key)
        if same == item:
            placed.items[index] = same


class StateCache:
    """The files as they were last parsed, by path."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[bytes, StateFile]] = {}

    def parse(self, content: Content) -> StateFile:
        """What the file says; parsed only if its content is not what it was last time."""
        digest = digest_of(content)
        known = self._files.get(content.path)
        if known is None or known[0] != digest:
            file = StateFile(content, None if known is None else known[1])
            known = self._files[content.path] = (digest, file)
        return known[1]

    def last(self, path: Path) -> StateFile | None:
        """What the file said when it was last parsed."""
        known = self._files.get(path)
        return None if known is None else known[1]

    def keep_only(self, paths: Iterable[Path]) -> None:
        """Forgets all other files."""
        keep = set(paths)
        for path in [path for path in self._files if path not in keep]:
            del self._files[path]


def digest_of(content: Content) -> bytes:
    """Equal for equal contents, and for equal reasons why there is none."""
    return blake2b(content.data or repr(content.problems).encode(), digest_size=16).digest()


def combine(directory: str, files: Iterable[StateFile]) -> Mesh | list[Problem]:
    """One model of all files, every workload in the phase ABSENT; or everything that is wrong with them."""
    files = list(files)
    problems = [problem for file in files for problem in file.problems]
    trust_domain = _trust_domain(directory, files, problems)
    if not problems:
        # Where nothing is wrong, the model itself finds that out fastest.
        with suppress(MeshError):
            mesh = _build(trust_domain, files)
            stated = Stated(trust_domain, {kind: table.items for kind, table in mesh.tables.items()})
            return _check(stated, files) or mesh
    problems += _clashes(files)
    # What refers to something else is looked at only when that was read: a mistake is to be reported once.
    if not problems:
        keys = {kind: {item.key for file in files for _, item in file.lists[kind].valid()} for kind in READERS}
        problems += _check(Stated(trust_domain, keys), files)
    return problems or _build(trust_domain, files)


def _build(trust_domain: str, files: list[StateFile]) -> Mesh:
    # Nothing is wrong with any: each is there.
    put = {kind: tuple(chain.from_iterable(file.lists[kind].items for file in files)) for kind in READERS}
    return Mesh.from_difference(MeshDifference(trust_domain, put))


def _check(stated: Stated, files: list[StateFile]) -> list[Problem]:
    return [
        problem
        for kind, reader in READERS.items()
        for problem in reader.check(stated, [file.lists[kind] for file in files])
    ]


def _trust_domain(directory: str, files: list[StateFile], problems: list[Problem]) -> str:
    stated = [(file, file.trust_domain_line) for file in files if file.trust_domain_line is not None]
    for file, line in stated[1:]:
        first, first_line = stated[0]
        found = f"it again (first at {first.name}{f':{first_line}' if first_line else ''})"
        problems.append(Problem(file.name, line, "trust_domain", "it in one file only", found))
    if not stated and not problems:
        expected = "'trust_domain: <name>' in one of the *.yaml, *.yml or *.json files"
        problems.append(Problem(directory, 0, "", expected, "it in none" if files else "no such file"))
    return (stated[0][0].trust_domain or "") if stated else ""


def _clashes(files: list[StateFile]) -> list[Problem]:
    """What only one object may have and several do: names, addresses."""
    contents = [(KINDS[kind], _with_places(file.lists[kind] for file in files)) for kind in READERS]
    problems = []
    for (first_list, first_index), (placed, index), clash in clashes(contents):
        article = "an" if clash.what[0] in "aeiou" else "a"
        found = f"{clash.value} again (first at {first_list.place(first_index)})"
        problems.append(placed.problem(index, clash.field or clash.what, f"{article} {clash.what} used once", found))
    return problems


def _with_places(lists: Iterable[Placed[Any]]) -> list[tuple[tuple[Placed[Any], int], Any]]:
    return [((placed, index), item) for placed in lists for index, item in placed.valid()]
