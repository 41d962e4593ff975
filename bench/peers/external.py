"""A peer that is described by a file, for binaries from outside.

    name: my-proxy                     # how it is called in the figures
    captures: false                    # true: the load goes to the server's own address, and the commands see to
                                       # it that it is captured; false: it goes to 127.0.0.1:{entry_port}
    encrypts: true                     # whether plaintext on the wire is an error (default true)
    threads: 2                         # threads of each side that move bytes (default 2; the other peers have 2)
    descriptors_per_connection: 2      # 1 if connections share a tunnel (default 2)
    version: [/opt/my-proxy, --version]          # its first line is shown; left out: "unknown"
    client:                            # the side of the client pod; `server` has the same fields
      files: {proxy.conf: "listen 127.0.0.1:{entry_port} ..."}     # written into {directory}
      setup: [[iptables, -t, nat, ...]]          # run in the pod's network namespace first, one after the other
      command: [/opt/my-proxy, --config, "{directory}/proxy.conf"] # stays in the foreground
      environment: {THREADS: "{threads}"}

In all texts, {directory} is the side's own directory, with chain.pem, key.pem, both.pem and bundle.pem in it; {client}
and {server} are the pods' addresses; {entry_port}, {tunnel_port} (the server side's) and {app_port} are ports;
{identity} and {peer_identity} SPIFFE ids; {name} and {peer_name} the DNS names of the certificates; {threads} as above.
A brace that stands for itself is doubled.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from bench.bed import APP_PORT, CLIENT, SERVER, Bed
from bench.certificates import dns_name, identity
from bench.errors import BenchError, DescriptionError
from bench.peers.peer import ENTRY_PORT, TUNNEL_PORT, Peer, Started, first_line, program
from nodeseal_lab.processes import ProcessRecord

T = TypeVar("T")

_PLACES = (
    "directory", "client", "server", "entry_port", "tunnel_port", "app_port", "identity", "peer_identity", "name",
    "peer_name", "threads",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """What is run in one pod, places not yet filled in."""

    command: tuple[str, ...]
    setup: tuple[tuple[str, ...], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Description:
    """A description file that was read."""

    name: str
    captures: bool
    client: Side
    server: Side
    encrypts: bool = True
    threads: int = 2
    descriptors_per_connection: int = 2
    version: tuple[str, ...] = ()


def read_description(path: Path, taken: Sequence[str] = ()) -> Description:
    """Reads a description. `taken`: names that other peers have. Raises DescriptionError."""
    try:
        value = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise DescriptionError(f"{path}: {str(error).splitlines()[0]}") from error
    reader = _Reader(path)
    top = reader.mapping(value, "", required=("name", "captures", "client", "server"), allowed=Description)
    description = Description(
        name=reader.text(top["name"], "name"),
        captures=reader.of(bool, top["captures"], "captures", "true or false"),
        encrypts=reader.of(bool, top.get("encrypts", True), "encrypts", "true or false"),
        threads=reader.number(top.get("threads", 2), "threads", "a number"),
        descriptors_per_connection=reader.number(
            top.get("descriptors_per_connection", 2), "descriptors_per_connection", "1 or 2"
        ),
        version=reader.texts(top.get("version", []), "version"),
        client=reader.side(top["client"], "client"),
        server=reader.side(top["server"], "server"),
    )
    if description.name in taken:
        raise DescriptionError(f"{path}: name: '{description.name}' is the name of another peer; choose one of its own")
    return description


class External(Peer):
    """A peer from a description."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self.name = description.name
        self.encrypts = description.encrypts
        self.threads = description.threads
        self.shares_descriptors = description.descriptors_per_connection > 1

    def missing(self) -> str | None:
        for side in (self.description.client, self.description.server):
            if "{" not in side.command[0] and program(side.command[0]) is None:
                return f"put the program {side.command[0]} where its description says it is"
        return None

    def version(self) -> str:
        return first_line(self.description.version) if self.description.version else "unknown"

    def start(self, bed: Bed) -> Started:
        watched = tuple(
            self._start_side(bed, pod, side)
            for pod, side in ((SERVER, self.description.server), (CLIENT, self.description.client))
        )
        target = bed.app if self.description.captures else f"127.0.0.1:{ENTRY_PORT}"
        return Started(target, proxies=tuple(record.pid for record in watched if record.pid), watched=watched)

    def _start_side(self, bed: Bed, pod: str, side: Side) -> ProcessRecord:
        other = SERVER if pod == CLIENT else CLIENT
        directory = bed.directory(pod)
        values = {
            "directory": str(directory),
            "client": bed.address(CLIENT),
            "server": bed.address(SERVER),
            "entry_port": ENTRY_PORT,
            "tunnel_port": TUNNEL_PORT,
            "app_port": APP_PORT,
            "identity": identity(pod),
            "peer_identity": identity(other),
            "name": dns_name(pod),
            "peer_name": dns_name(other),
            "threads": self.threads,
        }
        for name, text in side.files.items():
            (directory / name).write_text(text.format_map(values))
        for command in side.setup:
            argv = [part.format_map(values) for part in command]
            done = bed.run(pod, partial(_run, argv))
            if done.returncode != 0:
                raise BenchError(f"{self.name}: `{' '.join(argv)}` failed: {done.stderr.strip() or done.returncode}")
        environment = {key: text.format_map(values) for key, text in side.environment.items()}
        return bed.start(pod, [part.format_map(values) for part in side.command], self.name, environment)


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL)


class _Reader:
    """Checks values of the file, and says where one is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, where: str, expected: str, found: object) -> DescriptionError:
        return DescriptionError(f"{self.path}: {where or 'the file'}: expected {expected}, found {found!r}")

    def mapping(
        self, value: object, where: str, *, required: Sequence[str], allowed: type[Side] | type[Description]
    ) -> dict[str, Any]:
        names = tuple(one.name for one in fields(allowed))
        if not isinstance(value, dict):
            raise self.fail(where, f"a mapping with {', '.join(required)}", value)
        for name in required:
            if name not in value:
                raise self.fail(where, f"the field '{name}'", sorted(map(str, value)))
        for name in value:
            if name not in names:
                raise self.fail(where, f"only the fields {', '.join(names)}", name)
        return value

    def of(self, kind: type[T], value: object, where: str, expected: str) -> T:
        if not isinstance(value, kind):
            raise self.fail(where, expected, value)
        return value

    def number(self, value: object, where: str, expected: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fail(where, expected, value)
        return value

    def text(self, value: object, where: str) -> str:
        if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
            raise self.fail(where, "a text", value)
        text = str(value)
        try:
            text.format_map(dict.fromkeys(_PLACES, ""))
        except (KeyError, ValueError, IndexError) as error:
            places = ", ".join(f"{{{place}}}" for place in _PLACES)
            raise self.fail(where, f"a text with no other places than {places}", text) from error
        return text

    def texts(self, value: object, where: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self.fail(where, "a list of texts", value)
        return tuple(self.text(item, f"{where}[{number}]") for number, item in enumerate(value))

    def side(self, value: object, where: str) -> Side:
        found = self.mapping(value, where, required=("command",), allowed=Side)
        command = self.texts(found["command"], f"{where}.command")
        if not command:
            raise self.fail(f"{where}.command", "a program and its arguments", [])
        setup = self.of(list, found.get("setup", []), f"{where}.setup", "a list of commands")
        return Side(
            command=command,
            setup=tuple(self.texts(item, f"{where}.setup[{number}]") for number, item in enumerate(setup)),
            files=self._texts_by_name(found.get("files", {}), f"{where}.files"),
            environment=self._texts_by_name(found.get("environment", {}), f"{where}.environment"),
        )

    def _texts_by_name(self, value: object, where: str) -> dict[str, str]:
        mapping = self.of(dict, value, where, "a mapping of names to texts")
        return {str(name): self.text(text, f"{where}.{name}") for name, text in mapping.items()}
