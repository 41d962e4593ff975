"""The mesh state's files: each is parsed by itself, then all are put together into one model.

A file's result is kept under the digest of its content, so that an edit of one file, or another node's publication,
does not parse the others again.
"""

from array import array
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from sys import intern
from typing import Generic, Protocol, TypeVar

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
from nodeseal.documents.exclude import read_exclusions
from nodeseal.documents.host import read_host
from nodeseal.documents.limits import read_limits
from nodeseal.documents.schema import Fields, read_text
from nodeseal.mesh.address import MESH_PORTS
from nodeseal.mesh.host import OWN_NAMESPACE, HostPlace
from nodeseal.mesh.model import Mesh, MeshError, Mode, OnFailure, Service, ServicePort, Workload, WorkloadName
from nodeseal.mesh.spiffe import SpiffeId, SpiffeIdError, check_trust_domain
from nodeseal.sources.directory.plain import take_plain_workloads

_DEFAULT = "default"
_NETNS = r"(?!.*(?:^|/)\.\.?(?:/|$))(?:[A-Za-z0-9._-]{1,255}|/[\x21-\x7e]{1,4094})"


class _Named(Protocol):
    @property
    def key(self) -> WorkloadName: ...
    @property
    def addresses(self) -> tuple[object, ...]: ...


_Item = TypeVar("_Item", bound=_Named)


@dataclass
class Placed(Generic[_Item]):
    """The items of one list of one file, each with its line. An item with problems is None, so that indices stay."""

    file: str
    list_name: str
    items: list[_Item | None] = field(default_factory=list)
    lines: "array[int]" = field(default_factory=lambda: array("L"))

    def valid(self) -> Iterator[tuple[int, _Item]]:
        """Each valid item with its index."""
        return ((index, item) for index, item in enumerate(self.items) if item is not None)

    def add(self, node: Node, item: _Item | None) -> None:
        """Takes the next item."""
        self.items.append(item)
        self.lines.append(node.line)

    def share(self, earlier: "Placed[_Item]") -> None:
        """Takes the earlier list's object for every item that is equal to one there, so that models that follow each
        other share what has not changed."""
        known: dict[WorkloadName, _Item] = {}
        for index, item in self.valid():
            same = earlier.items[index] if index < len(earlier.items) else None
            if same is None or same.key != item.key:
                # Something was put in or taken out before it.
                known = known or {one.key: one for _, one in earlier.valid()}
                same = known.get(item.key)
            if same == item:
                self.items[index] = same

    def problem(self, index: int, field_name: str, expected: str, found: str) -> Problem:
        """A problem with a field of an item."""
        return Problem(self.file, self.lines[index], f"{self.list_name}[{index}].{field_name}", expected, found)


class StateFile:
    """What one file of the mesh state says, or what is wrong with it."""

    def __init__(self, content: Content, earlier: "StateFile | None" = None) -> None:
        """Takes any content. Never raises. `earlier`: what the file said before."""
        self.name = name = content.name
        self.trust_domain: str | None = None
        self.trust_domain_line = 0
        self.workloads: Placed[Workload] = Placed(name, "workloads")
        self.services: Placed[Service] = Placed(name, "services")
        problems = Problems(name)
        problems.extend(content.problems)
        if content.data is not None and not self._read_plain(content.data):
            self._read(content.data, problems)
        self.problems: tuple[Problem, ...] = tuple(problems.found)
        if earlier is not None and not self.problems:
            self.workloads.share(earlier.workloads)
            self.services.share(earlier.services)

    def _read_plain(self, data: bytes) -> bool:
        """False if the file has to be read as YAML as a whole, also to find out what is wrong with it."""
        plain = take_plain_workloads(data)
        if plain is None:
            return False
        problems = Problems(self.name)
        self._read(plain.rest, problems)
        if problems.count or self.workloads.items:
            self.trust_domain, self.trust_domain_line = None, 0
            self.workloads, self.services = Placed(self.name, "workloads"), Placed(self.name, "services")
            return False
        self.workloads.items = [workload for _, workload in plain.workloads]
        self.workloads.lines = array("L", [line for line, _ in plain.workloads])
        return True

    def _read(self, data: bytes, problems: Problems) -> None:
        def on_item(field_name: str, index: int, node: Node) -> None:
            if field_name == "workloads":
                self.workloads.add(node, _read_workload(problems, node, f"workloads[{index}]"))
            elif field_name == "services":
                self.services.add(node, _read_service(problems, node, f"services[{index}]"))

        root = read_document(data, problems, on_item)
        if root is None:
            return
        fields = Fields(problems, root)
        # Both lists were taken item by item; what is left to see is whether they are lists.
        for name, expected in (("workloads", "a list of workloads"), ("services", "a list of services")):
            node = fields.node(name, expected, required=False)
            if node is not None and not isinstance(node, List | Broken):
                problems.add(node.line, name, expected, describe(node))
        before = problems.count
        domain = fields.text("trust_domain", "")
        if domain and problems.count == before:
            self.trust_domain_line = fields.line_of("trust_domain")
            try:
                check_trust_domain(domain)
                self.trust_domain = domain
            except SpiffeIdError:
                expected = "1 to 255 characters of a-z, 0-9, '.', '_' and '-'"
                problems.add(self.trust_domain_line, "trust_domain", expected, shown(domain))
        fields.close()


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
            _check_endpoints(files, mesh.workloads, problems)
            return problems or mesh
    _check_unique([file.workloads for file in files], [file.services for file in files], problems)
    # What refers to something else is looked at only when that was read: a mistake is to be reported once.
    if not problems:
        _check_identities(trust_domain, files, problems)
        names = {workload.key for file in files for _, workload in file.workloads.valid()}
        _check_endpoints(files, names, problems)
    return problems or _build(trust_domain, files)


def _build(trust_domain: str, files: list[StateFile]) -> Mesh:
    workloads = [item for file in files for _, item in file.workloads.valid()]
    services = [item for file in files for _, item in file.services.valid()]
    return Mesh.build(trust_domain, workloads, services)


def _read_workload(problems: Problems, node: Node, path: str) -> Workload | None:
    before = problems.count
    fields = Fields(problems, node, path)
    workload = Workload(
        key=WorkloadName(intern(fields.name("namespace", _DEFAULT)), fields.name("name")),
        service_account=intern(fields.name("service_account", _DEFAULT)),
        node=intern(fields.name("node")),
        addresses=fields.addresses(),
        netns=fields.text("netns", "", expected="a path or a name under /run/netns", pattern=_NETNS) or None,
        wanted=fields.truth("enrolled", False),
        mode=fields.choice("mode", Mode.PERMISSIVE),
        exclude=read_exclusions(fields),
        on_failure=fields.choice("on_failure", OnFailure.CLOSED),
        limits=read_limits(fields, "limits"),
        host=read_host(fields),
    )
    if workload.host is not None:
        # In one order for all of them: the core knows them by the first.
        addresses = tuple(sorted(workload.addresses, key=lambda address: address.version))
        workload = replace(workload, netns=OWN_NAMESPACE, addresses=addresses)
    fields.close()
    return workload if problems.count == before else None


def _read_service(problems: Problems, node: Node, path: str) -> Service | None:
    before = problems.count
    fields = Fields(problems, node, path)
    key = WorkloadName(intern(fields.name("namespace", _DEFAULT)), fields.name("name"))
    service = Service(
        key=key,
        addresses=fields.addresses(),
        ports=_read_ports(problems, fields),
        endpoints=_read_endpoints(problems, fields, key.namespace),
    )
    fields.close()
    return service if problems.count == before else None


def _read_ports(problems: Problems, service: Fields) -> tuple[ServicePort, ...]:
    ports: dict[int, ServicePort] = {}
    nodes = service.items("ports", "a list of ports", required=True)
    for index, node in enumerate(nodes):
        fields = Fields(problems, node, f"{service.at('ports')}[{index}]")
        port = fields.port("port")
        target = fields.port("target_port", port)
        fields.close()
        if target in MESH_PORTS:
            expected = "a port that is not the mesh's own (15001, 15006, 15008)"
            problems.add(fields.line_of("target_port"), fields.at("target_port"), expected, str(target))
        if port in ports:
            problems.add(fields.line_of("port"), fields.at("port"), "each port once", f"{port} again")
        ports[port] = ServicePort(port, target)
    return tuple(ports.values())


def _read_endpoints(problems: Problems, service: Fields, namespace: str) -> tuple[WorkloadName, ...]:
    endpoints: dict[WorkloadName, None] = {}
    for index, node in enumerate(service.items("endpoints", "a list of workload names", required=True)):
        field_name = f"{service.at('endpoints')}[{index}]"
        name = read_workload_name(problems, node, field_name, namespace)
        if name in endpoints:
            problems.add(node.line, field_name, "each endpoint once", f"{name} again")
        if name is not None:
            endpoints[name] = None
    return tuple(endpoints)


def read_workload_name(problems: Problems, node: Node, path: str, namespace: str | None) -> WorkloadName | None:
    """Reads "ns/name", or with a `namespace` to fall back on also "name"; None after noting a problem."""
    expected = "a workload as namespace/name" if namespace is None else "a workload as name or namespace/name"
    text = read_text(problems, node, path, expected)
    if not text:
        return None
    parts = text.split("/") if namespace is None or "/" in text else [namespace, text]
    if len(parts) != 2 or not all(parts):
        problems.add(node.line, path, expected, shown(text))
        return None
    return WorkloadName(intern(parts[0]), parts[1])


def _trust_domain(directory: str, files: list[StateFile], problems: list[Problem]) -> str:
    stated = [file for file in files if file.trust_domain_line]
    for file in stated[1:]:
        first = f"{stated[0].name}:{stated[0].trust_domain_line}"
        found = f"it again (first at {first})"
        problems.append(Problem(file.name, file.trust_domain_line, "trust_domain", "it in one file only", found))
    if not stated and not problems:
        expected = "'trust_domain: <name>' in one of the *.yaml or *.yml files"
        problems.append(Problem(directory, 0, "", expected, "it in none" if files else "no such file"))
    return (stated[0].trust_domain or "") if stated else ""


def _check_unique(workloads: list[Placed[Workload]], services: list[Placed[Service]], problems: list[Problem]) -> None:
    """Names are unique among workloads and among services; addresses among both together, but that processes of one
    node may share theirs as long as they have no port in common."""
    # The place of a first occurrence is looked for only when there is a second: two numbers per item, not a text.
    addresses: dict[object, tuple[Placed[Workload] | Placed[Service], int]] = {}
    neighbours: dict[object, list[tuple[Placed[Workload] | Placed[Service], int]]] = {}
    for lists in (workloads, services):
        names: dict[WorkloadName, tuple[Placed[Workload] | Placed[Service], int]] = {}
        for placed in lists:
            for index, item in placed.valid():
                first = names.setdefault(item.key, (placed, index))
                if first != (placed, index):
                    found = f"{item.key} again (first at {_place(*first)})"
                    problems.append(placed.problem(index, "name", "a name used once", found))
                for address in item.addresses:
                    first = addresses.setdefault(address, (placed, index))
                    if first == (placed, index):
                        neighbours.setdefault(address, [])
                    elif not _may_share(first[0].items[first[1]], item):
                        found = f"{address} again (first at {_place(*first)})"
                        problems.append(placed.problem(index, "address", "an address used once", found))
                        continue
                    if isinstance(item, Workload) and item.host is not None:
                        for other, port in _common_ports(item.host, neighbours[address]):
                            found = f"{port} of {address} again (first at {_place(*other)})"
                            problems.append(placed.problem(index, "host.ports", "a port used once", found))
                        neighbours[address].append((placed, index))


def _may_share(one: Workload | Service | None, other: Workload | Service) -> bool:
    """An address."""
    if not isinstance(one, Workload) or not isinstance(other, Workload):
        return False
    return one.host is not None and other.host is not None and one.node == other.node


def _common_ports(
    host: HostPlace, places: Iterable[tuple[Placed[Workload] | Placed[Service], int]]
) -> Iterator[tuple[tuple[Placed[Workload] | Placed[Service], int], int]]:
    """Those of the places that have a port in common with `host`, each with such a port."""
    for place in places:
        item = place[0].items[place[1]]
        if isinstance(item, Workload) and item.host is not None:
            port = host.common_port(item.host)
            if port is not None:
                yield place, port


def _place(placed: Placed[Workload] | Placed[Service], index: int) -> str:
    return f"{placed.file}:{placed.lines[index]}, {placed.list_name}[{index}]"


def _check_identities(trust_domain: str, files: list[StateFile], problems: list[Problem]) -> None:
    checked: set[tuple[str, str]] = set()
    for file in files:
        for index, workload in file.workloads.valid():
            pair = (workload.key.namespace, workload.service_account)
            if pair in checked:
                continue
            checked.add(pair)
            try:
                SpiffeId(trust_domain, *pair)
            except SpiffeIdError as error:
                expected = "a service account that makes a valid SPIFFE id"
                problems.append(file.workloads.problem(index, "service_account", expected, f"one for which: {error}"))


def _check_endpoints(files: list[StateFile], names: Container[WorkloadName], problems: list[Problem]) -> None:
    for file in files:
        for index, service in file.services.valid():
            for position, endpoint in enumerate(service.endpoints):
                if endpoint not in names:
                    expected = "the name of a workload"
                    found = f"{shown(str(endpoint))}, which is none"
                    problems.append(file.services.problem(index, f"endpoints[{position}]", expected, found))
