"""What the ways of capturing have in common: pod_ebpf.py, host_ebpf.py, iptables.py. selection.py says which one
captures whom, node.py drives them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import Protocol

from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import BackendName, Entry, Journal
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.linux.rtnetlink import Survey


class Choice(StrEnum):
    """What may be asked for."""

    AUTO = "auto"
    """ebpf where it works, iptables otherwise."""
    EBPF = "ebpf"
    IPTABLES = "iptables"


class Backend(Protocol):
    """One way of capturing a workload's connections, given the listeners that are to get them.

    Each method makes complete what a crash left half done, and undoes whatever of it is there. The caller has written
    the journal entry before. Methods raise LinuxError, except where said.
    """

    name: BackendName
    of_processes: bool
    """Whether it captures processes of the node; else it captures whole network namespaces."""
    needs_keepalive: bool
    """Whether the outbound listener's connections are to send keepalives."""
    tunnels_anywhere: bool
    """Whether peers' tunnels reach the core at all of a workload's addresses, without a socket for each."""
    accepted_mark: int
    """What the core accepts from the application carries this mark."""

    def prepare(self, journal: Journal, undo: contextlib.ExitStack) -> None:
        """Find out whether this machine has what it takes, and put in place what all workloads share. What undoes it
        goes to `undo`. Harmless when repeated.
        """

    def begin(self, entry: Entry, namespace: NetworkNamespace, neighbours: Collection[Entry]) -> None:
        """Fill in, of a new entry, what tells the workload from its neighbours: those in the same namespace."""

    def plan(self, entry: Entry, survey: Survey) -> None:
        """Enter into the journal's entry what install() is going to change; what it holds already stays: it tells how
        things were before nodeseal came. To be called inside the namespace.
        """

    def install(self, entry: Entry, namespace: NetworkNamespace, survey: Survey, listeners: Mapping[int, int]) -> None:
        """Capture new connections. `listeners`: role -> descriptor. Undoing is left to the caller."""

    def configure(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """Put what the entry says of `open_on_failure` and `parking` in force, of a workload that is captured."""

    def refresh(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """Cover what has come since, put back what somebody took away. Cheap when nothing happened."""

    def stop_new(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """New connections go direct from here on, both ways; those that are captured, and SYNs under way, stay so."""

    def remove(
        self, entry: Entry, namespace: NetworkNamespace | None, neighbours: Collection[Entry]
    ) -> Iterator[str | CaptureError]:
        """Undo everything; prepare() need not have been called. `namespace`: None when it is gone, and what was in it;
        `neighbours`: the other workloads in it.

        Does as much as it can: yields a line for each thing that was there and is removed, an error for what failed.
        """

    def give_listeners(self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int]) -> None:
        """Hand the captured connections of each role in `listeners` to its listener from now on."""

    def ring(self, entry: Entry, namespace: NetworkNamespace, held: int | None) -> int | None:
        """A descriptor of the ring (by rules: the queue of packets) in which what the workload dials is parked, the
        caller's to close; None: nothing of it ever is. `held`: one that a core has, which stays the caller's. The
        journal is to be saved afterwards.
        """

    def live_listeners(self, entry: Entry, namespace: NetworkNamespace) -> frozenset[int]:
        """The roles (outbound and inbound) whose listeners get the captured connections now."""

    def close(self) -> None:
        """Let go of all descriptors; what is installed stays."""
