"""The iptables backend of capture, for kernels and policies without the BPF features: TPROXY, marks and conntrack.

What the rules do is told in ruleset.py; the marks lead to the same routing table, and the core's sockets are the
same, as with eBPF (routing.py, listeners.py). All of it is in the workload's network namespace, by the journal's
word, and needs no process of ours: when both agent and core are dead, captured connections are dropped until an agent
puts in new listeners, whose ports it writes into the rules.

What eBPF does better:

* A captured application's socket carries no mark: its packets get theirs from the conntrack entry. Should the entry go
  while the connection lives, the application's next packet would leave for the address that it dialled, in plaintext.
  So conntrack has to be kept from forgetting. The core's side of such a connection sends keepalives, each of which
  renews the entry and writes the mark again (TRACKED_SECONDS; the shortest time-out of a state in which an application
  can send is 60 s). When the core has died, its kernel closes its side, and the application's stays in CLOSE_WAIT until
  the application notices: that state's time-out is made as long as the kernel takes, 24 days. Who deletes conntrack
  entries by hand (conntrack -F) takes captured connections out of capture until the core next sends.
* conntrack is used at all, for everything in the namespace: each connection takes an entry of the machine's table
  (nf_conntrack_max). When that is full, the kernel drops what opens a connection.
* connect() needs a route to the address that is dialled, and takes its source address from it.
* Rules of others in mangle PREROUTING and OUTPUT come after ours; those in PREROUTING do not see what TPROXY took.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial

from nodeseal.capture import constants, removal, routing, settings
from nodeseal.capture.backends import ruleset
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import BackendName, Entry, Journal
from nodeseal.capture.listeners import INBOUND, OUTBOUND, STEERED
from nodeseal.capture.removal import Step
from nodeseal.linux import capabilities, conntrack, packet_queue, proc_net, rtnetlink, sysctls, xtables
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.namespace import NetworkNamespace, in_new_namespace
from nodeseal.linux.rtnetlink import Survey
from nodeseal.mesh.exclusions import Excluded

log = logging.getLogger("nodeseal.capture")

_PARK_FULL = "park_full"  # of constants.COUNTERS
CONNTRACK_SYSCTLS = {
    # Connections older than enrolment are taken up in their middle. It is the default.
    "net/netfilter/nf_conntrack_tcp_loose": "1",
    # A packet outside of the window that conntrack reckons with is the peer's business, and keeps its entry.
    "net/netfilter/nf_conntrack_tcp_be_liberal": "1",
    # In seconds; the largest that fits into an int of jiffies with 1000 of them a second.
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait": "2147483",
}


class IptablesBackend:
    """The iptables backend; see Backend."""

    name: BackendName = "iptables"
    of_processes = False
    needs_keepalive = True
    tunnels_anywhere = True
    accepted_mark = constants.MARK_CAPTURED

    def __init__(self) -> None:
        self._bypass: Mapping[str, Excluded] | None = None
        self._journal: Journal | None = None
        self.cannot_park: str | None = "it was not tried"
        """Why no rule can park SYNs here, after prepare(); None: they can."""

    def set_bypass(self, bypass: Mapping[str, Excluded], captured: Iterable[tuple[Entry, NetworkNamespace]]) -> None:
        """Workload -> what comes in and is left to the application: of those that are captured already, and of those
        that will be. Raises LinuxError.
        """
        before, self._bypass = self._bypass, dict(bypass)
        for entry, namespace in captured:
            if before is not None and before.get(entry.name) == bypass.get(entry.name):
                continue
            try:
                namespace.run(partial(self._write, entry, None, capturing=entry.state != "leaving"))
            except LinuxError:
                self._bypass = None  # the next call does it for all of them
                raise

    def prepare(self, journal: Journal, undo: contextlib.ExitStack) -> None:
        """Try the rules in a network namespace made for it."""
        capabilities.check_privileges(bpf=False)

        def attempt() -> None:
            xtables.restore(xtables.choose(4), sample(4))
            conntrack.marked_connections(constants.MARK_CAPTURED)

        in_new_namespace(attempt)
        self._journal = journal
        self.cannot_park = cannot_park()

    def begin(self, entry: Entry, namespace: NetworkNamespace, neighbours: Collection[Entry]) -> None:
        """See Backend: it has no neighbours."""

    def plan(self, entry: Entry, survey: Survey) -> None:
        """See Backend."""
        if not entry.xtables:
            entry.xtables += [xtables.choose(version) for version in entry.versions]
        if constants.MARK_RELEASED not in entry.marks:
            entry.marks.append(constants.MARK_RELEASED)
        settings.plan(entry, settings.of_pod(entry) | CONNTRACK_SYSCTLS)

    def install(self, entry: Entry, namespace: NetworkNamespace, survey: Survey, listeners: Mapping[int, int]) -> None:
        """See Backend."""

        def body() -> None:
            sysctls.apply(entry.sysctls)
            routing.put(entry, survey.devices)
            self._write(entry, _ports_of(listeners), capturing=True)

        _warn(entry)
        try:
            namespace.run(body)
        except OSError as error:
            raise CaptureError(f"cannot capture {entry.name} in {entry.netns}: {error.strerror}") from None

    def configure(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend: `open_on_failure` cannot be had, since no rule can tell whether somebody holds a listener."""
        _warn(entry)
        namespace.run(partial(self._write, entry, None, capturing=entry.state != "leaving"))

    def refresh(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend: devices that came since are covered when the workload is enrolled again."""

    def stop_new(self, entry: Entry, namespace: NetworkNamespace) -> None:
        """See Backend."""

        namespace.run(partial(self._write, entry, None, capturing=False))

    def remove(
        self, entry: Entry, namespace: NetworkNamespace | None, neighbours: Collection[Entry]
    ) -> Iterator[str | CaptureError]:
        """See Backend."""
        if namespace is None:
            return iter(())
        where = f"{entry.name} ({entry.netns})"
        steps: list[Step] = [
            (f"rules of {program} of {where}", partial(namespace.run, partial(_erase, program)))
            for program in entry.xtables
        ]
        steps += routing.removals(entry, namespace, where)
        steps += settings.removals(entry, namespace, where)
        return removal.carried_out(steps)

    def give_listeners(self, entry: Entry, namespace: NetworkNamespace, listeners: Mapping[int, int]) -> None:
        """See Backend."""

        def body() -> None:
            if constants.MARK_RELEASED not in entry.marks:
                assert self._journal is not None
                entry.marks.append(constants.MARK_RELEASED)  # an older version captured it
                self._journal.save()
                routing.put(entry, rtnetlink.survey().devices)
            self._write(entry, _ports_of(listeners), capturing=entry.state != "leaving")

        namespace.run(body)

    def ring(self, entry: Entry, namespace: NetworkNamespace, held: int | None) -> int | None:
        """See Backend: a queue of packets, which is the core's as long as it has the socket. A new one has another
        number if somebody has the last one's: an older core, until it has let go of it."""
        if self.cannot_park is not None:
            return None

        def body() -> int:
            number = packet_queue.number_of(held) if held is not None else None
            if held is not None and number is not None:
                ring = os.dup(held)
            else:
                ring, number = packet_queue.make(constants.QUEUES)
            if number != entry.queue:
                entry.queue = number
                if entry.parking:
                    self._write(entry, None, capturing=entry.state != "leaving")
            return ring

        return namespace.run(body)

    def live_listeners(self, entry: Entry, namespace: NetworkNamespace) -> frozenset[int]:
        """See Backend."""

        def body() -> frozenset[int]:
            listening = proc_net.listening_ports()
            found: set[int] = set()
            for program in entry.xtables:
                found |= {role for role, port in ruleset.ports(xtables.save(program)).items() if port in listening}
            return frozenset(found)

        return namespace.run(body)

    def counters(self, captured: Iterable[tuple[Entry, NetworkNamespace]]) -> dict[str, int]:
        """What went wrong, as the rules of all workloads counted it: name -> how often. Takes milliseconds for each."""
        totals = dict.fromkeys((*ruleset.COUNTERS, _PARK_FULL), 0)
        for entry, namespace in captured:
            if entry.queue:
                queues = namespace.run(lambda: list(packet_queue.queues()))
                totals[_PARK_FULL] += sum(one.dropped for one in queues if one.number == entry.queue)
            for program in entry.xtables:
                saved = namespace.run(partial(xtables.save, program, counters=True))
                for name, count in ruleset.counters(saved).items():
                    totals[name] += count
        return totals

    def close(self) -> None:
        """See Backend: there is nothing to hold."""

    def _write(self, entry: Entry, ports: Mapping[int, int] | None, *, capturing: bool) -> None:
        """`ports`: None for those that the rules have now. To be called inside the namespace."""
        bypass = None if self._bypass is None else self._bypass.get(entry.name, Excluded())
        for program in entry.xtables:
            saved = xtables.save(program)
            now = ruleset.ports(saved) if ports is None else ports
            family = family_of(program)
            text = ruleset.installation(
                saved,
                family,
                now,
                capturing=capturing,
                bypass=bypass,
                addresses=[one for one in entry.target_addresses if one.version == family],
                queue=entry.queue if entry.parking else None,
            )
            xtables.restore(program, text)


def family_of(program: str) -> int:
    """4 or 6."""
    return 6 if program.startswith("ip6") else 4


def _erase(program: str) -> bool:
    text = ruleset.removal(xtables.save(program))
    if text:
        xtables.restore(program, text)
    return bool(text)


def _ports_of(listeners: Mapping[int, int]) -> dict[int, int]:
    ports = {}
    for role in STEERED:
        if role in listeners:
            with socket.socket(fileno=os.dup(listeners[role])) as listener:
                ports[role] = listener.getsockname()[1]
    return ports


def sample(family: int, *, queue: int | None = None) -> str:
    """All rules, for ports that nobody listens on. `queue`: they park SYNs in it."""
    return ruleset.installation("", family, {OUTBOUND: 1, INBOUND: 1}, capturing=True, queue=queue)


def cannot_park() -> str | None:
    """Why no rule can park SYNs here, found out in a network namespace that is made for it; None: they can."""

    def attempt() -> None:
        queue, number = packet_queue.make(constants.QUEUES)
        try:
            xtables.restore(xtables.choose(4), sample(4, queue=number))
        finally:
            os.close(queue)

    try:
        in_new_namespace(attempt)
    except LinuxError as error:
        return str(error)
    return None


def _warn(entry: Entry) -> None:
    if entry.open_on_failure:
        log.warning("workload %s: on_failure: open has no effect with capture by iptables: closed", entry.name)
