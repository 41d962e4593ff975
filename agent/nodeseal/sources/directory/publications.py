"""Publications: what each node's agent has really enrolled, one file per node in the directory `enrolled`.

    # enrolled/node1.yaml, written by the agent of node1 and by nobody else
    node: node1
    enrolled:
      - "default/shipper"

A peer opens tunnels to what is published, not to what the mesh state wishes for.

The comments in its first lines also say by which CA the node issues, whom it trusts, and which other roots it still
needs, so that others see that theirs is another, and `nodeseal trust remove` what may go. They are comments because
agents of the first version take a field that they do not know for a mistake.

Trust
-----
Only a workload's own node says whether it is enrolled. An entry for a workload of another node has no effect, and is a
problem that is shown; one for a workload that the mesh state does not (or no longer) know has no effect.

Failing closed
--------------
A publication that is there and cannot be read (its file is broken, unreadable, or says it is another node's) must
neither stop the rest of the mesh nor turn traffic into plaintext. Treating its workloads as not enrolled would do
that: our node would send plaintext to an application whose node still enforces mutual TLS, and the first bytes would be
on the wire before the far side refuses. So while a node's publication cannot be read:

* what it last said, as far as this process has read it, goes on counting;
* if this process has never read it, every workload of that node that the mesh state wants enrolled counts as enrolled.

The worst of it is a refused connection to a workload that is not enrolled after all, which the problem explains. A
file that is *not there* is different: it is how a node says that nothing of its is enrolled (`withdraw`).
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nodeseal.documents.document import MAX_PROBLEMS, Content, Problem, Problems, read_document, shown
from nodeseal.documents.schema import Fields
from nodeseal.documents.workload import read_workload_name
from nodeseal.mesh.model import Mesh, Phase, WorkloadName
from nodeseal.mesh.trust import DIGEST_LENGTH, Need, Trust
from nodeseal.sources.source import PublicationError

ENROLLED = "enrolled"
"""Name of the directory of publications inside the mesh state's directory."""

SUFFIX = ".yaml"
"""What the name of a publication ends with, behind the node's."""

_ANCHORS_MOST = 64
"""Of a node: more than a mesh may have, so more than there is but where a root.pem holds many."""

_DIGEST = rb"[0-9a-f]{%d}" % DIGEST_LENGTH
_TRUST = re.compile(
    rb"# [^\n]{1,400}; do not edit\. CA: (%b) trusts:((?: %b){1,64})\n"
    rb"(?:# needs:((?: %b=[0-9]{1,12}){0,64})\n(?:# connections:((?: %b=[0-9]{1,12}){1,64})\n)?)?"
    % (_DIGEST, _DIGEST, _DIGEST, _DIGEST)
)
"""What a node needs is in lines of its own: agents of former versions read the first one to its end. The second of them
has the anchors that connections need; they are in the first one as well."""


def publish(directory: Path, node: str, names: Iterable[WorkloadName], trust: Trust | None = None) -> bool:
    """Says that exactly these workloads of `node` are enrolled. Atomic: readers see the old list or the new one.

    Writes nothing if that is what the file says already, and returns whether it wrote. Raises PublicationError.
    """
    path = path_of(directory, node)
    known = f" CA: {trust.issuer} trusts: {' '.join(_told(trust))}" if trust is not None else ""
    lines = [f"# Written by the agent of {node}; do not edit.{known}"]
    if trust is not None and trust.needs is not None:
        needs = trust.needs[:_ANCHORS_MOST]
        lines.append("# needs:" + "".join(f" {need.anchor}={need.until}" for need in needs))
        if counts := [f" {need.anchor}={need.connections}" for need in needs if need.connections]:
            lines.append("# connections:" + "".join(counts))
    lines.append(f"node: {json.dumps(node)}")
    listed = sorted(set(names))
    lines.append("enrolled:" if listed else "enrolled: []")
    lines += [f"  - {json.dumps(str(name))}" for name in listed]
    data = ("\n".join(lines) + "\n").encode()
    # Hidden and without the suffix: nobody reads it. One agent runs per node, so the name is its own.
    temporary = path.with_name(f".{node}.new")
    try:
        with suppress(FileNotFoundError):
            if path.read_bytes() == data:
                return False
        path.parent.mkdir(mode=0o755, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise PublicationError(
            f"cannot publish the enrolled workloads in {path}: {error.strerror or error}; make the directory writable"
        ) from error
    return True


def _told(trust: Trust) -> list[str]:
    """Its anchors, as many as readers take; the one by which it issues is among them."""
    others = sorted(trust.anchors - {trust.issuer})
    own = trust.anchors & {trust.issuer}
    return sorted([*own, *others[: _ANCHORS_MOST - len(own)]])


def withdraw(directory: Path, node: str) -> None:
    """Says that no workload of `node` is enrolled, by removing its file. Fine if there is none. PublicationError."""
    path = path_of(directory, node)
    try:
        for gone in (path, path.with_name(f".{node}.new")):
            # NotADirectoryError: something else stands in the place of the directory, so nothing is published.
            with suppress(FileNotFoundError, NotADirectoryError):
                gone.unlink()
    except OSError as error:
        raise PublicationError(
            f"cannot withdraw the publication {path}: {error.strerror or error}; remove the file by hand"
        ) from error


def path_of(directory: Path, node: str) -> Path:
    if not node or "/" in node or "\0" in node or node.startswith("."):
        raise PublicationError(f"cannot publish for the node {node!a}: it cannot be a file name; give it another name")
    return directory / ENROLLED / f"{node}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class Publication:
    """One node's file. `names` is None while it cannot be read and never was."""

    node: str
    file: str
    names: frozenset[WorkloadName] | None
    problems: tuple[Problem, ...] = ()
    trust: Trust | None = None


def read_publication(content: Content, last: Publication | None) -> Publication:
    """The publication that a file holds; its names are the `last` ones if it cannot be read. Never raises."""
    node = content.path.stem
    trust = None if content.data is None else _read_trust(content.data)
    problems = Problems(content.name)
    problems.extend(content.problems)
    names = None if content.data is None else _read_names(content.data, node, problems)
    if problems.count:
        names = None if last is None else last.names
    return Publication(node, content.name, names, tuple(problems.found), trust)


def _read_trust(data: bytes) -> Trust | None:
    """None if the publication says nothing of it, as those of former versions do."""
    match = _TRUST.match(data)
    if match is None:
        return None
    issuer, *anchors = (digest.decode("ascii") for digest in (match[1], *match[2].split()))
    needs = None
    if match[3] is not None:
        connections = dict(_pairs(match[4] or b""))
        needs = tuple(sorted(Need(anchor, until, connections.get(anchor, 0)) for anchor, until in _pairs(match[3])))
    return Trust(frozenset(anchors), issuer, needs)


def _pairs(text: bytes) -> Iterator[tuple[str, int]]:
    """Of " digest=number digest=number"."""
    for token in text.decode("ascii").split():
        digest, _, number = token.partition("=")
        yield digest, int(number)


def _read_names(data: bytes, node: str, problems: Problems) -> frozenset[WorkloadName] | None:
    root = read_document(data, problems)
    if root is None:
        return None
    fields = Fields(problems, root)
    stated = fields.text("node", expected="the node's name")
    if stated and stated != node:
        problems.add(fields.line_of("node"), "node", f"{shown(node)}, as the file is named", shown(stated))
    names = set()
    for index, item in enumerate(fields.items("enrolled", "a list of workloads", required=True)):
        name = read_workload_name(problems, item, f"enrolled[{index}]", None)
        if name is not None:
            names.add(name)
    fields.close()
    return frozenset(names)


def phases(mesh: Mesh, publications: Iterable[Publication]) -> tuple[dict[WorkloadName, Phase], list[Problem]]:
    """The phase of every workload of `mesh` according to the publications, and what is wrong with these."""
    result = dict.fromkeys(mesh.workloads, Phase.ABSENT)
    problems: list[Problem] = []
    unread: set[str] = set()
    for publication in publications:
        problems += publication.problems
        if publication.names is None:
            unread.add(publication.node)
            continue
        foreign = []
        for name in publication.names:
            workload = mesh.workloads.get(name)
            if workload is None:
                continue
            if workload.node == publication.node:
                result[name] = Phase.ENROLLED
            else:
                foreign.append((name, workload.node))
        for name, node in sorted(foreign)[: max(0, MAX_PROBLEMS - len(problems))]:
            expected = f"workloads of {publication.node}"
            problems.append(Problem(publication.file, 0, "enrolled", expected, f"{name}, of {node}"))
    if unread:
        for name, workload in mesh.workloads.items():
            if workload.wanted and workload.node in unread:
                result[name] = Phase.ENROLLED
    return result, problems
