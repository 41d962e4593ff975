"""What capture has changed on this machine, written down before each change.

`run_dir/capture.json` is the only thing that survives kill -9 besides the kernel's own state; cleanup and an agent that
starts again work from it. It is rewritten as a whole under a temporary name and renamed: it is never half there.
An entry says what may have been done, not what was: undoing something that never happened is harmless everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from nodeseal.capture.errors import CaptureError
from nodeseal.linux.sysctls import Sysctl
from nodeseal.linux.tc_filters import Filter
from nodeseal.mesh.address import Address

FILE_NAME = "capture.json"
_VERSION = 7
# 1 knew tc filters only: its entries have no `links`; up to 2 there was one `address`; up to 3 nothing told of which
# version the programs are; up to 4 all was by eBPF; up to 5 nothing held back what
# goes out, and no rule kept connections of the node's processes from conntrack; up to 6 nothing was parked, and only
# families in which the mesh state gave an address were captured.
_READABLE = (1, 2, 3, 4, 5, 6, 7)

# installing: enrol() has begun and the sockets were not handed out yet; capturing: all is in place; leaving: new
# connections go direct, captured ones still go on.
State = Literal["installing", "capturing", "leaving"]


# How the workload is captured: see backends/selection.py.
BackendName = Literal["ebpf", "iptables"]


@dataclass(slots=True)
class Link:
    """A device with TCX links: at its ingress one that is pinned as steer-<index> in the directory of the namespace's
    pins, at its egress one that is pinned as hold-<index>.
    """

    device: str
    index: int


@dataclass(slots=True)
class Entry:
    """One workload. `netns`: path; `cookie` says which namespace is meant should the path mean another one later."""

    name: str
    netns: str
    cookie: int
    inode: int
    addresses: list[str]
    state: State
    table: int
    rule_priority: int
    marks: list[int]
    filters: list[Filter] = field(default_factory=list)
    sysctls: list[Sysctl] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    open_on_failure: bool = False
    parking: bool = False  # SYNs that it sends wait in its ring for the core
    native: bool = False  # with parking: SYNs to it wait as well, and what is in plaintext goes past the core
    cgroup: str = ""  # of a process of the node, see host_ebpf.py; "": it has a network namespace
    number: int = 0  # of such a process, in its namespace
    ports: list[list[int]] = field(default_factory=list)  # its own: first and last of each range
    programs: str = ""  # version of those that are attached (Programs.version); "": of some other one
    backend: BackendName = "ebpf"
    queue: int = 0  # where rules park SYNs: the number of the queue of packets; 0: there is none
    xtables: list[str] = field(default_factory=list)
    """The programs whose tables hold our rules: iptables-nft, ip6tables-legacy..."""
    untracked: list[str] = field(default_factory=list)
    """Of a process of the node: what holds the rules that keep its connections from conntrack, see untracked.py."""
    uncaptured: list[str] = field(default_factory=list)
    """Addresses that the namespace has in a family that is not captured."""
    unattributed: list[str] = field(default_factory=list)
    """The others that it has and the mesh state does not give to the workload."""
    absent: list[str] = field(default_factory=list)
    """Of the workload's addresses those that no device of the namespace has."""
    near: list[str] = field(default_factory=list)
    """For each captured family the address that stands for the workload: the first of the mesh state's, or where that
    gives none, one that the namespace has. Up to 6: the mesh state's, of which there was one."""

    @property
    def target_addresses(self) -> tuple[Address, ...]:
        """The workload's addresses."""
        return tuple(map(ip_address, self.addresses))

    @property
    def near_addresses(self) -> tuple[Address, ...]:
        """See `near`."""
        return tuple(map(ip_address, self.near)) or self.target_addresses

    @property
    def versions(self) -> tuple[int, ...]:
        """Of the IP that is captured: 4, 6 or both."""
        return tuple(address.version for address in self.near_addresses)

    @property
    def pins(self) -> str:
        """The directory, below the BPF file system, that holds this namespace's maps and links."""
        return f"ns-{self.cookie}-{self.number}" if self.cgroup else f"ns-{self.cookie}"


class Journal:
    """Entries by workload name. Call save() before changing what they describe. `programs`: as in an entry, of those
    that all workloads of the node share.
    """

    def __init__(self, path: Path, entries: dict[str, Entry], programs: str = "") -> None:
        self.path = path
        self.entries = entries
        self.programs = programs

    @classmethod
    def load(cls, run_dir: Path) -> Journal:
        """Read it; none yet is an empty one. Raises CaptureError when it cannot be read or understood."""
        path = run_dir / FILE_NAME
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError:
            return cls(path, {})
        except OSError as error:
            raise CaptureError(f"cannot read the capture journal {path}: {error.strerror}; run as root") from None
        except ValueError as error:
            raise CaptureError(f"the capture journal {path} is damaged ({error}); run `{_cleanup(run_dir)}`") from None
        try:
            if value["version"] not in _READABLE:
                raise CaptureError(
                    f"the capture journal {path} is of version {value['version']}, this program writes {_VERSION}; "
                    f"run `{_cleanup(run_dir)}` of the version that wrote it"
                )
            entries = {name: _entry(item) for name, item in value["entries"].items()}
            return cls(path, entries, str(value.get("programs", "")))
        except (KeyError, TypeError, AttributeError) as error:
            raise CaptureError(
                f"the capture journal {path} is damaged ({error!r}); run `{_cleanup(run_dir)}`"
            ) from None

    def neighbours(self, entry: Entry) -> list[Entry]:
        """The other processes of the node in the namespace of one; of a workload with a namespace of its own: none."""
        if not entry.cgroup:
            return []
        return [
            other
            for other in self.entries.values()
            if other is not entry and other.cgroup and other.cookie == entry.cookie
        ]

    def save(self) -> None:
        """Write it. Raises CaptureError."""
        # An entry a line. It is written twice for each workload that is enrolled, with all others in it: with asdict()
        # and indentation, which only the encoder in Python makes, that would take ten times as long.
        lines = [f"{json.dumps(name)}: {json.dumps(_value(entry))}" for name, entry in self.entries.items()]
        head = f'{{"version": {_VERSION}, "programs": {json.dumps(self.programs)}, "entries": {{\n'
        text = head + ",\n".join(lines) + "\n}}\n"
        draft = self.path.with_suffix(".new")
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as stream:
                stream.write(text)
            draft.replace(self.path)
        except OSError as error:
            raise CaptureError(f"cannot write the capture journal {self.path}: {error.strerror}") from None

    def delete(self) -> bool:
        """Remove the file. False when there was none."""
        self.path.with_suffix(".new").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
            return True
        return False


def _value(item: Entry | Link | Filter | Sysctl) -> dict[str, Any]:
    return {name: _plain(getattr(item, name)) for name in item.__slots__}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(item) if isinstance(item, Link | Filter | Sysctl) else item for item in value]
    return value


def _cleanup(run_dir: Path) -> str:
    return f"nodeseal cleanup --run-dir {shlex.quote(str(run_dir))}"


def _entry(value: dict[str, Any]) -> Entry:
    if "address" in value:
        value = {**value, "addresses": [value["address"]]}
        del value["address"]
    return Entry(
        **{
            **value,
            "filters": [Filter(**item) for item in value["filters"]],
            "sysctls": [Sysctl(**item) for item in value["sysctls"]],
            "links": [Link(**item) for item in value.get("links", [])],
        }
    )
