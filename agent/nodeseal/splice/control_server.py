"""The core's side of the control socket: what the agent asks is carried out on the C core and its decider.

One request at a time, of whatever connection; see nodeseal.contracts.core for all of them. What comes in has first to
be a request of the contract; one that is none, or that cannot be carried out, is answered with one line and changes
nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import msgspec

from nodeseal import __version__
from nodeseal.contracts import core as contract
from nodeseal.contracts.core import Answer, Refused, Request
from nodeseal.linux.control_socket import close_all
from nodeseal.mesh.address import Address
from nodeseal.mesh.concern import Concern, Concerns
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.mesh.spiffe import SpiffeId, check_trust_domain
from nodeseal.splice import native
from nodeseal.splice.decider import Decider, State
from nodeseal.splice.event_stream import EventStream
from nodeseal.splice.published import published_anew, published_change
from nodeseal.splice.revocations import IncomingRevocations
from nodeseal.splice.transfer import Incoming, TransferError, part_of

log = logging.getLogger("nodeseal.core")

_KEPT_S = 5.0
_REMEMBERED_S = 60.0  # as long as the C core lists what was closed


class RequestError(Exception):
    """A request cannot be carried out; the text goes to the one who asked."""


@dataclass(slots=True)
class Record:
    """A workload that the C core has; `listeners` holds this process's own descriptors by role."""

    key: int
    name: WorkloadName
    identity: SpiffeId
    addresses: tuple[Address, ...]
    listeners: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Session:
    """What is kept for one control connection between its requests."""

    connections: native.ConnectionSnapshot | None = None
    """Those of which not all parts have been read."""
    until: float = 0.0
    """How long they are kept (time.monotonic); tens of thousands are many megabytes."""
    subscribed: bool = False
    """Events go there from its last answer on."""

    def forget(self, now: float) -> None:
        """Lets go of what has been kept for long enough."""
        if now >= self.until:
            self.connections = None


@dataclass(slots=True)
class Carried:
    """A request as it is being carried out. Descriptors that are left in `fds` are closed at the end."""

    session: Session
    fds: list[int]


Outcome = Answer | tuple[Answer, list[int]]
"""An answer, and descriptors to send with it, which stay open here."""


class ControlServer:
    """Carries out requests on a core and its decider. Not thread-safe: the main thread owns it."""

    def __init__(self, core: native.Core, *, trust_domain: str, generation: int = 1, build: str = "") -> None:
        self._core = core
        self._trust_domain = trust_domain
        self._generation = generation
        self._build = build
        self.retired = False
        self._ends_at: float | None = None
        self._records: dict[int, Record] = {}
        self._trusted: dict[str, str] = {}
        """Anchors (PEM) by trust domain."""
        self._revocations = IncomingRevocations()
        self._revoked = 0
        self.decider = Decider(core, self._name_of)
        self.stopping = False
        self._removed: dict[int, tuple[str, float]] = {}
        """Names of workloads that have gone, and until when they are known: their connections are still told of."""
        self.events = EventStream(core, self._last_text_of)
        self._incoming = Incoming()
        self._concerns = Concerns()
        self._ops: dict[type[Request[Any]], Callable[[Any, Carried], Outcome]] = {
            contract.Hello: self._hello,
            contract.Retire: self._retire,
            contract.Live: self._live,
            contract.WorkloadAdd: self._workload_add,
            contract.WorkloadAddresses: self._workload_addresses,
            contract.WorkloadLimits: self._workload_limits,
            contract.WorkloadCredentials: self._workload_credentials,
            contract.TrustBundle: self._trust_bundle,
            contract.TrustBundles: self._trust_bundles,
            contract.Revocations: self._revoke,
            contract.WorkloadListen: self._workload_listen,
            contract.WorkloadUnlisten: self._workload_unlisten,
            contract.WorkloadRemove: self._workload_remove,
            contract.Listeners: self._listeners,
            contract.MeshPart: self._mesh_part,
            contract.MeshChange: self._mesh,
            contract.MeshRead: self._mesh_read,
            contract.Connections: self._connections,
            contract.Refusals: self._refusals,
            contract.Stats: self._stats,
            contract.Anchors: self._anchors,
            contract.Subscribe: self._subscribe,
            contract.Stop: self._stop,
        }

    def _name_of(self, key: int) -> WorkloadName | None:
        record = self._records.get(key)
        return record.name if record is not None else None

    def _text_of(self, key: int) -> str | None:
        record = self._records.get(key)
        return str(record.name) if record is not None else None

    def _last_text_of(self, key: int) -> str | None:
        """Also of a workload that was removed a moment ago."""
        return self._text_of(key) or self._removed.get(key, (None,))[0]

    def handle(self, session: Session, body: bytes, fds: list[int]) -> tuple[Answer | Refused, list[int]]:
        """The answer to a request, and descriptors to send with it (kept open here). Takes over `fds`; never raises."""
        name = "?"
        try:
            request = contract.read_request(body)
            name = contract.operation_name(type(request))
            outcome = self._ops[type(request)](request, Carried(session, fds))
            return outcome if isinstance(outcome, tuple) else (outcome, [])
        except (contract.MessageError, RequestError, TransferError, native.NativeError) as error:
            return Refused(error=str(error)), []
        except (TypeError, ValueError) as error:
            return Refused(error=f"malformed request {name!r}: {error!r}"), []
        except Exception as error:
            log.error("request %r failed: %r", name, error)
            return Refused(error=f"internal error: {error!r}"), []
        finally:
            close_all(fds)

    def _hello(self, _request: contract.Hello, _carried: Carried) -> Outcome:
        state = self.decider.state
        workloads = tuple(
            contract.CoreWorkload(
                key=record.key,
                name=str(record.name),
                identity=str(record.identity),
                addresses=tuple(map(str, record.addresses)),
                roles=tuple(sorted(record.listeners)),
            )
            for record in self._records.values()
        )
        return contract.Introduction(
            pid=os.getpid(),
            version=__version__,
            build=self._build,
            protocol=contract.PROTOCOL,
            generation=self._generation,
            retired=self.retired,
            epoch=state.epoch if state is not None else 0,
            trust_domain=self._trust_domain,
            workloads=workloads,
        )

    def _retire(self, request: contract.Retire, _carried: Carried) -> Outcome:
        self._ends_at = time.monotonic() + request.limit_s if request.limit_s is not None else None
        if not self.retired:
            self.retired = True
            self._core.retire()
            for record in self._records.values():
                close_all(record.listeners.values())
                record.listeners.clear()
            log.info("retired: another core takes new connections; this one ends with its last")
        return Answer()

    def _live(self, _request: contract.Live, _carried: Carried) -> Outcome:
        stats = self._core.stats()
        return contract.LiveCounts(connections=stats.live_connections, tunnels=_tunnels(stats))

    def finished(self) -> bool:
        """Whether a retired core has nothing left to do, or no more time for it."""
        if not self.retired:
            return False
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            log.warning("retired for as long as is allowed: what is left of its connections is reset")
            return True
        stats = self._core.stats()
        return not stats.live_connections and not _tunnels(stats)

    def _record(self, key: int) -> Record:
        record = self._records.get(key)
        if record is None:
            raise RequestError(f"the core has no workload with the key {key}")
        return record

    def _workload_add(self, request: contract.WorkloadAdd, carried: Carried) -> Outcome:
        if len(carried.fds) != 1:
            raise RequestError("workload_add needs one descriptor, the network namespace")
        record = Record(
            key=request.key,
            name=WorkloadName.parse(request.name),
            identity=SpiffeId.parse(request.identity),
            addresses=tuple(map(ip_address, request.addresses)),
        )
        if not record.addresses:
            raise RequestError(f"workload_add of {record.name} without an address")
        if record.key in self._records:
            raise RequestError(f"the core already has a workload with the key {record.key}")
        # The name first: a question may come as soon as the C side knows the workload.
        self._records[record.key] = record
        try:
            self._core.workload_add(record.key, carried.fds[0], record.addresses[0])
        except BaseException:
            del self._records[record.key]
            raise
        where = ", ".join(map(str, record.addresses))
        log.info("workload %s added, address %s, key %d", record.name, where, record.key)
        return Answer()

    def _workload_addresses(self, request: contract.WorkloadAddresses, _carried: Carried) -> Outcome:
        record, addresses = self._record(request.key), tuple(map(ip_address, request.addresses))
        if not addresses:
            raise RequestError(f"workload_addresses of {record.name} without an address")
        record.addresses = addresses
        log.info("workload %s has the addresses %s", record.name, ", ".join(map(str, addresses)))
        return Answer()

    def _workload_limits(self, request: contract.WorkloadLimits, _carried: Carried) -> Outcome:
        record = self._record(request.key)
        self._core.workload_limits(record.key, request.limits)
        log.info("workload %s has the limits %s", record.name, request.limits.as_dict())
        return Answer()

    def _workload_credentials(self, request: contract.WorkloadCredentials, carried: Carried) -> Outcome:
        record = self._record(request.key)
        identity = SpiffeId.parse(request.identity)
        if request.key_fd != (request.key_pem is msgspec.UNSET) or len(carried.fds) != request.key_fd:
            raise RequestError("workload_credentials needs the private key, in one descriptor or as text")
        if request.bundle_pem is not msgspec.UNSET:
            self._trust({self._trust_domain: request.bundle_pem})
        if request.key_pem is msgspec.UNSET:
            self._core.workload_credentials_from(record.key, request.chain_pem, carried.fds[0])
        else:
            self._core.workload_credentials(record.key, request.chain_pem, request.key_pem)
        record.identity = identity
        log.info("workload %s has new credentials for %s", record.name, identity)
        return Answer()

    def _trust_bundle(self, request: contract.TrustBundle, _carried: Carried) -> Outcome:
        if request.trust_domain != self._trust_domain:
            raise RequestError(
                f"trust anchors of {request.trust_domain}; this core's workloads are of {self._trust_domain}"
            )
        self._trust({self._trust_domain: request.bundle_pem})
        return Answer()

    def _trust_bundles(self, request: contract.TrustBundles, _carried: Carried) -> Outcome:
        bundles = {bundle.trust_domain: bundle.bundle_pem for bundle in request.bundles}
        for domain in bundles:
            check_trust_domain(domain)
        if len(bundles) != len(request.bundles):
            raise RequestError("trust anchors of a trust domain that is there twice")
        if self._trust_domain not in bundles:
            raise RequestError(f"trust anchors without those of this core's own trust domain {self._trust_domain}")
        self._trust(bundles)
        return Answer()

    def _trust(self, bundles: dict[str, str]) -> None:
        # An agent that starts does not know what this core has, and tunnels need not suffer for that.
        if bundles != self._trusted:
            self._core.trust(bundles)
            self._trusted = bundles
            log.info("new trust anchors for %s", ", ".join(sorted(bundles)))

    def _revoke(self, request: contract.Revocations, _carried: Carried) -> Outcome:
        change = self._revocations.add(request)
        if change is None:
            return contract.RevocationsInForce(count=self._revoked)
        before, self._revoked = self._revoked, self._core.revoke(change.revoked, change.restored, whole=change.whole)
        if self._revoked or before:
            log.info("%d identities and certificates are revoked, before it were %d", self._revoked, before)
        return contract.RevocationsInForce(count=self._revoked)

    def _workload_listen(self, request: contract.WorkloadListen, carried: Carried) -> Outcome:
        record, roles = self._record(request.key), list(request.roles)
        if self.retired:
            raise RequestError("this core is retired: new connections are another one's")
        if len(roles) != len(carried.fds) or not set(roles) <= set(native.ROLES) or len(set(roles)) != len(roles):
            raise RequestError(f"workload_listen with roles {roles} and {len(carried.fds)} descriptors")
        taken = [role for role in roles if role in record.listeners]
        if taken:
            raise RequestError(f"workload {record.name} already listens in the roles {taken}")
        for role, fd in zip(roles, list(carried.fds), strict=True):
            self._core.workload_listen(record.key, role, fd)
            record.listeners[role] = fd
            carried.fds.remove(fd)
        log.info("workload %s listens in the roles %s", record.name, roles)
        return Answer()

    def _workload_unlisten(self, request: contract.WorkloadUnlisten, _carried: Carried) -> Outcome:
        record = self._record(request.key)
        for role in request.roles:
            if role in record.listeners:
                self._core.workload_unlisten(record.key, role)
                os.close(record.listeners.pop(role))
        log.info("workload %s no longer listens in the roles %s", record.name, list(request.roles))
        return Answer()

    def _workload_remove(self, request: contract.WorkloadRemove, _carried: Carried) -> Outcome:
        record = self._record(request.key)
        self._core.workload_remove(record.key)
        del self._records[record.key]
        now = time.monotonic()
        self._removed = {key: one for key, one in self._removed.items() if now < one[1]}
        self._removed[record.key] = str(record.name), now + _REMEMBERED_S
        close_all(record.listeners.values())
        log.info("workload %s removed", record.name)
        return Answer()

    def _listeners(self, request: contract.Listeners, _carried: Carried) -> Outcome:
        listeners = sorted(self._record(request.key).listeners.items())
        return contract.ListenerRoles(roles=tuple(role for role, _fd in listeners)), [fd for _role, fd in listeners]

    def _mesh_part(self, request: contract.MeshPart, _carried: Carried) -> Outcome:
        self._incoming.add(request.number, request.part)
        return Answer()

    def _mesh(self, request: contract.MeshChange, _carried: Carried) -> Outcome:
        last = request.full if request.full is not msgspec.UNSET else request.difference
        if last is msgspec.UNSET:
            raise RequestError("a mesh state that is neither whole nor a difference")
        content = self._incoming.complete(request.parts, last)
        epoch = request.epoch
        state = self.decider.state
        if state is not None and epoch <= state.epoch:
            raise RequestError(f"mesh epoch {epoch} is not after {state.epoch}")
        before = state.mesh if state is not None else None
        if request.full is not msgspec.UNSET:
            mesh = Mesh.from_difference(content)
            change = published_anew(before, mesh)
            concern = None
            self._concerns.begin(mesh)
        else:
            if state is None or request.base != state.epoch:
                raise RequestError(f"mesh difference to the epoch {request.base}, which is not in force")
            mesh = state.mesh.apply(content)
            change = published_change(before, content)
            concern = self._concerns.take(state.mesh, content, mesh)
        # What is added comes first: an address that both have is not forgotten for a moment.
        self._core.publish(change.added)
        self._core.withdraw(change.withdrawn)
        self.decider.state = State(mesh, epoch)
        self._core.epoch(epoch, self._packed(concern))
        log.info("mesh epoch %d: %d workloads, %d services", epoch, len(mesh.workloads), len(mesh.services))
        return Answer()

    def _packed(self, concern: Concern | None) -> native.Concern | None:
        """As the core knows it."""
        if concern is None:
            return None
        addresses = b"".join(map(native.pack_ip, concern.addresses))
        keys = [key for key, record in self._records.items() if record.name in concern.workloads]
        return native.Concern(addresses, list(concern.ports), keys)

    def _mesh_read(self, request: contract.MeshRead, _carried: Carried) -> Outcome:
        state = self.decider.state
        if state is None:
            return contract.MeshPiece()
        part, following = part_of(state.mesh, request.first)
        return contract.MeshPiece(part=part, next=following)

    def _connections(self, request: contract.Connections, carried: Carried) -> Outcome:
        session = carried.session
        if request.first == 0 or session.connections is None:
            session.connections, session.until = self._core.connections(), time.monotonic() + _KEPT_S
        rows, following = session.connections.part(request, self._last_text_of)
        if following is None:
            session.connections = None
        return contract.ConnectionRows(connections=rows, next=following)

    def _refusals(self, _request: contract.Refusals, _carried: Carried) -> Outcome:
        rows = (msgspec.structs.replace(refusal, workload=self._text_of(key)) for key, refusal in self._core.refusals())
        return contract.RefusalRows(refused=tuple(rows))

    def _stats(self, _request: contract.Stats, _carried: Carried) -> Outcome:
        return contract.Counters(core=self._core.stats(), workloads=self._core.workload_stats(self._text_of))

    def _anchors(self, _request: contract.Anchors, _carried: Carried) -> Outcome:
        return contract.AnchorUses(anchors=self._core.anchors())

    def _subscribe(self, _request: contract.Subscribe, carried: Carried) -> Outcome:
        carried.session.subscribed = True
        return Answer()

    def _stop(self, _request: contract.Stop, _carried: Carried) -> Outcome:
        self.stopping = True
        return Answer()


def _tunnels(stats: contract.CoreStats) -> int:
    """With those whose handshake is not done: a retired core still brings it to its end."""
    return stats.live_tunnels + stats.strangers
