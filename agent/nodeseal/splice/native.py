"""The C core as Python sees it: loading it, and carrying addresses, texts and snapshots across.

Everything that touches cffi's structures by field name is in this module and in decider.py; the fields' meaning is
documented in cext/include/nodeseal_core.h.
"""

from __future__ import annotations

import importlib
import ipaddress
import struct
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from nodeseal.contracts.core import (
    CONNECTIONS_PART,
    AnchorUse,
    Connection,
    Connections,
    CoreStats,
    Limited,
    WorkloadStats,
)
from nodeseal.contracts.events import Closed, Event, Failed, LimitReached, Opened, PeerRefused
from nodeseal.contracts.refusal import KINDS, Refusal
from nodeseal.mesh.address import Address
from nodeseal.mesh.limits import LIMIT_NAMES, Limits

# enum ns_question_kind, enum ns_verdict, enum ns_way, enum ns_listener_role of nodeseal_core.h
ASK_OUTBOUND, ASK_INBOUND_TUNNEL, ASK_INBOUND_PLAINTEXT = 0, 1, 2
REFUSE, ALLOW, UNAVAILABLE, NOT_YET = 0, 1, 2, 3
PLAINTEXT, TUNNEL, TUNNEL_BY_NAME = 0, 1, 2
LISTEN_OUTBOUND, LISTEN_INBOUND, LISTEN_HBONE, LISTEN_HBONE6, LISTEN_PARKED = 0, 1, 2, 3, 4
ROLES = (LISTEN_OUTBOUND, LISTEN_INBOUND, LISTEN_HBONE, LISTEN_HBONE6, LISTEN_PARKED)
DIRECTIONS = ("outbound", "inbound")
STATES = ("deciding", "connecting", "open", "closed")

LIMITED = ("connections", "new_connections", "memory", "descriptors", "questions", "handshakes")
"""By enum ns_limit: what a refused connection met."""
_WORKLOAD_COUNTERS = tuple(
    name for name in WorkloadStats.__struct_fields__ if name not in ("key", "workload", "limits", "limited")
)
# enum ns_event_kind
EVENT_OPENED, EVENT_CLOSED, EVENT_FAILED, EVENT_REFUSED, EVENT_LIMIT = 0, 1, 2, 3, 4
_CONNECTION_EVENTS: dict[int, type[Opened | Closed | Failed]] = {
    EVENT_OPENED: Opened,
    EVENT_CLOSED: Closed,
    EVENT_FAILED: Failed,
}
_ERROR_SIZE = 512
_NOTICES = 16
# struct ns_question, ns_answer and ns_endpoint as bytes; a test compares them with the header.
QUESTION_HEAD = struct.Struct("=QQII16s2x16sH")
QUESTION_SIZE = 576
ANSWER_HEAD = struct.Struct("=QQIII4x96s")
ENDPOINT = struct.Struct("=16sH2xI512s96s")
IDENTITY_MAX, REASON_MAX, ENDPOINTS_MAX = 512, 96, 32
REVOKED_SIZE = 16
"""Bytes of a digest of what is revoked."""
_V4_MAPPED = b"\0" * 10 + b"\xff\xff"


NameOf = Callable[[int], str | None]
"""The name of a workload by its key; None for one that was removed."""


class NativeError(Exception):
    """The C core could not be loaded, or refused a call; the text is the core's own line."""


@dataclass(frozen=True, slots=True)
class Native:
    """The compiled module's two halves (cffi, API mode); tests put their own in."""

    ffi: Any
    lib: Any


def load() -> Native:
    """The compiled core. Raises NativeError when it was not built for this interpreter."""
    try:
        module = importlib.import_module("nodeseal._core")
    except ImportError as error:
        raise NativeError(
            f"the compiled core (nodeseal._core) cannot be loaded: {error}; build it with 'make install'"
        ) from error
    return Native(module.ffi, module.lib)


def pack_ip(address: Address) -> bytes:
    """The 16 bytes of struct ns_address; IPv4 goes in its v4-mapped form (RFC 4291, 2.5.5.2)."""
    packed = address.packed
    return packed if len(packed) == 16 else _V4_MAPPED + packed


def pack_address(into: Any, address: Address, port: int) -> None:
    """Fills a struct ns_address."""
    into.ip = list(pack_ip(address))
    into.port = port


def unpack_address(structure: Any) -> tuple[Address, int]:
    """(address, port) of a struct ns_address; a v4-mapped address comes back as IPv4."""
    return _address(bytes(structure.ip)), structure.port


def fit(text: str, size: int) -> bytes:
    """`text` as UTF-8 for a char[size] with its terminating zero, cut between characters if it is too long."""
    encoded = text.replace("\0", "").encode("utf-8", "replace")
    if len(encoded) < size:
        return encoded
    return encoded[: size - 1].decode("utf-8", "ignore").encode()


class LimitNotice(NamedTuple):
    """A struct ns_limit_notice; `limit` is one of LIMITED."""

    workload: int
    limit: str
    value: int
    refused: int


class KeyedRefusal(NamedTuple):
    """A struct ns_refusal; `refusal.workload` is yet to be filled in."""

    workload: int
    refusal: Refusal


class Question(NamedTuple):
    """A struct ns_question; `peer` is the bytes of its SPIFFE id."""

    id: int
    workload: int
    kind: int
    established: bool
    source: Address
    destination: Address
    port: int
    peer: bytes


class Questions:
    """Room for `capacity` questions, at `array`.

    They are read as bytes: a field at a time through cffi costs more than the decision itself.
    """

    def __init__(self, ffi: Any, capacity: int) -> None:
        self.capacity = capacity
        self.array = ffi.new("struct ns_question[]", capacity)
        self._bytes = ffi.buffer(self.array)

    def __getitem__(self, index: int) -> Question:
        at = index * QUESTION_SIZE
        number, workload, kind, established, source, destination, port = QUESTION_HEAD.unpack_from(self._bytes, at)
        peer = b""
        if kind == ASK_INBOUND_TUNNEL:
            peer = self._bytes[at + QUESTION_HEAD.size : at + QUESTION_SIZE].partition(b"\0")[0]
        return Question(number, workload, kind, established != 0, _address(source), _address(destination), port, peer)


class Answer:
    """A struct ns_answer at `structure`, written as bytes for the same reason."""

    def __init__(self, ffi: Any) -> None:
        self.structure = ffi.new("struct ns_answer *")
        self._bytes = ffi.buffer(self.structure)

    def fill(
        self, question: int, epoch: int, verdict: int, reason: str, *, endpoints: int = 0, valid_ms: int = 0
    ) -> None:
        """All but the endpoints, which `set_endpoint` has filled, `endpoints` of them. `valid_ms`: who comes later asks
        again; 0: who comes in another epoch."""
        ANSWER_HEAD.pack_into(self._bytes, 0, question, epoch, verdict, endpoints, valid_ms, fit(reason, REASON_MAX))

    def set_endpoint(
        self, index: int, address: Address, port: int, *, identity: str = "", by_name: bool = False, reason: str = ""
    ) -> None:
        """An endpoint through a tunnel to `identity`, or, when that is "", in plaintext because of `reason`. `by_name`:
        the peer is told which identity is meant.

        Raises ValueError for an identity that is too long: a shortened one would be another.
        """
        name = identity.encode()
        if len(name) >= IDENTITY_MAX:
            raise ValueError("an identity that is too long for the core")
        at = ANSWER_HEAD.size + index * ENDPOINT.size
        way = (TUNNEL_BY_NAME if by_name else TUNNEL) if name else PLAINTEXT
        ENDPOINT.pack_into(self._bytes, at, pack_ip(address), port, way, name, fit(reason, REASON_MAX))


def _address(packed: bytes) -> Address:
    if packed.startswith(_V4_MAPPED):
        return ipaddress.IPv4Address(packed[12:])
    return ipaddress.IPv6Address(packed)


def endpoint_text(structure: Any) -> str:
    """A struct ns_address as "10.0.0.1:80" or "[fd00::1]:80"; "" for the all-zero one."""
    address, port = unpack_address(structure)
    if int(address) == 0 and port == 0:
        return ""
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def protect_keys(native: Native) -> bool:
    """Has OpenSSL keep private keys in memory that is locked and not dumped, for the life of this process; before a
    core starts. False: some of that could not be had."""
    return bool(native.lib.core_protect_keys() == 1)


class Concern(NamedTuple):
    """What a change of the mesh state can concern, as in struct ns_concern: 16 bytes for each address, ports, keys of
    workloads."""

    addresses: bytes
    ports: list[int]
    workloads: list[int]


class Core:
    """One running C core: every call of nodeseal_core.h but the questions, with errors as NativeError."""

    def __init__(
        self,
        native: Native,
        *,
        workers: int,
        trust_domain: str,
        spin_us: int = 0,
        congestion_control: str = "",
        preconnect_ms: int = 0,
        unacknowledged_ms: int = 0,
        fips: bool = False,
    ) -> None:
        self.native = native
        ffi, lib = native.ffi, native.lib
        options = ffi.new("struct core_options *")
        options.workers = workers
        options.connect_timeout_ms = 10_000
        options.refused_retry_ms = 2_000
        options.idle_timeout_ms = 300_000
        options.spin_us = spin_us
        options.congestion_control = fit(congestion_control, 16)
        options.preconnect_ms = preconnect_ms
        options.unacknowledged_ms = unacknowledged_ms
        options.fips = fips
        options.trust_domain = fit(trust_domain, 256)
        error = ffi.new("char[]", _ERROR_SIZE)
        self._notices = ffi.new("struct ns_limit_notice[]", _NOTICES)
        self._refusal_notices = ffi.new("struct ns_refusal[]", _NOTICES)
        self._events: Any = None  # room for those that are taken at once
        self.handle = lib.core_start(options, error, _ERROR_SIZE)
        if self.handle == ffi.NULL:
            raise NativeError(_line(ffi, error))

    def stop(self) -> None:
        """Ends the workers; live connections are reset. No other call may be running but the decider's wait."""
        self.native.lib.core_stop(self.handle)
        self.handle = self.native.ffi.NULL

    def workload_add(self, key: int, netns_fd: int, address: Address) -> None:
        """See core_workload_add; `netns_fd` is duplicated."""
        structure = self.native.ffi.new("struct ns_address *")
        pack_address(structure, address, 0)
        self._call("core_workload_add", key, netns_fd, structure)

    def workload_limits(self, key: int, limits: Limits) -> None:
        """See core_workload_limits: from now on, also when it has more already."""
        structure = self.native.ffi.new("struct ns_limits *", limits.as_dict())
        self._call("core_workload_limits", key, structure)

    def trust(self, bundles: Mapping[str, str]) -> None:
        """See core_trust: trust domain -> its anchors (PEM), of all workloads."""
        texts = [(self._text(domain), self._text(pem)) for domain, pem in bundles.items()]
        rows = self.native.ffi.new("struct ns_bundle[]", [{"trust_domain": one, "pem": pem} for one, pem in texts])
        self._call("core_trust", rows, len(texts))

    def revoke(self, revoked: bytes, restored: bytes, *, whole: bool) -> int:
        """See core_revoke: 16 bytes for each digest. How many are revoked now."""
        size = REVOKED_SIZE
        count = self.native.lib.core_revoke(
            self.handle, revoked, len(revoked) // size, restored, len(restored) // size, whole
        )
        return int(count)

    def workload_credentials(self, key: int, chain_pem: str, key_pem: str) -> None:
        """See core_workload_credentials: all or nothing."""
        self._call("core_workload_credentials", key, chain_pem.encode(), key_pem.encode())

    def workload_credentials_from(self, key: int, chain_pem: str, key_fd: int) -> None:
        """See core_workload_credentials_from: all or nothing; `key_fd` stays the caller's."""
        self._call("core_workload_credentials_from", key, chain_pem.encode(), key_fd)

    def workload_listen(self, key: int, role: int, fd: int) -> None:
        """See core_workload_listen; `fd` is duplicated."""
        self._call("core_workload_listen", key, role, fd)

    def workload_unlisten(self, key: int, role: int) -> None:
        """See core_workload_unlisten."""
        self._call("core_workload_unlisten", key, role)

    def workload_remove(self, key: int) -> None:
        """See core_workload_remove: remaining connections are reset."""
        self._call("core_workload_remove", key)

    def retire(self) -> None:
        """See core_retire: what runs goes on, what is new is another core's."""
        self.native.lib.core_retire(self.handle)

    def epoch(self, epoch: int, concern: Concern | None) -> None:
        """Voids cached answers that it concerns, of None all; the model that answers must be in place before."""
        ffi = self.native.ffi
        if concern is None:
            self.native.lib.core_epoch(self.handle, epoch, ffi.new("struct ns_concern *", {"all": 1}))
            return
        addresses = ffi.from_buffer("uint8_t[]", concern.addresses)
        ports, workloads = ffi.new("uint16_t[]", concern.ports), ffi.new("uint64_t[]", concern.workloads)
        content = {
            "addresses": addresses,
            "address_count": len(concern.addresses) // 16,
            "ports": ports,
            "port_count": len(concern.ports),
            "workloads": workloads,
            "workload_count": len(concern.workloads),
        }
        self.native.lib.core_epoch(self.handle, epoch, ffi.new("struct ns_concern *", content))

    def publish(self, addresses: bytes) -> None:
        """See core_publish: 16 bytes for each address."""
        self.native.lib.core_publish(self.handle, addresses, len(addresses) // 16)

    def withdraw(self, addresses: bytes) -> None:
        """See core_withdraw: 16 bytes for each address."""
        self.native.lib.core_withdraw(self.handle, addresses, len(addresses) // 16)

    def connections(self) -> ConnectionSnapshot:
        """The live connections and the last closed ones, as they are now."""
        return ConnectionSnapshot(self.native.ffi, self._snapshot("connection", "core_connections", 256))

    def limit_notices(self) -> list[LimitNotice]:
        """See core_limit_notices."""
        count = self.native.lib.core_limit_notices(self.handle, self._notices, _NOTICES)
        rows = [self._notices[index] for index in range(count)]
        return [LimitNotice(row.workload, LIMITED[row.limit], row.value, row.refused) for row in rows]

    def refusal_notices(self) -> list[KeyedRefusal]:
        """See core_refusal_notices."""
        count = self.native.lib.core_refusal_notices(self.handle, self._refusal_notices, _NOTICES)
        return [_refusal(self.native.ffi, self._refusal_notices[index]) for index in range(count)]

    def refusals(self) -> list[KeyedRefusal]:
        """See core_refusals: of the last day."""
        return [_refusal(self.native.ffi, row) for row in self._snapshot("refusal", "core_refusals", 64)]

    def events_listen(self, *, wanted: bool) -> None:
        """See core_events_listen."""
        self.native.lib.core_events_listen(self.handle, wanted)

    def next_events(self, count: int, name_of: NameOf) -> tuple[tuple[Event, ...], int]:
        """(what has happened, at most `count`; how much more was lost since the last call): see core_next_events."""
        ffi = self.native.ffi
        if self._events is None or len(self._events) < count:
            self._events = ffi.new("struct ns_event[]", count)
        lost = ffi.new("uint64_t *")
        taken = self.native.lib.core_next_events(self.handle, self._events, count, lost)
        return tuple(_event(ffi, self._events[index], name_of) for index in range(taken)), lost[0]

    def workload_stats(self, name_of: NameOf) -> tuple[WorkloadStats, ...]:
        """Counters a workload."""
        rows = self._snapshot("workload_stats", "core_workload_stats", 128)
        return tuple(_workload_row(row, name_of(row.workload)) for row in rows)

    def stats(self) -> CoreStats:
        """The process's counters."""
        row = self.native.ffi.new("struct ns_core_stats *")
        self.native.lib.core_stats(self.handle, row)
        return CoreStats(**{name: getattr(row, name) for name in CoreStats.__struct_fields__})

    def anchors(self) -> tuple[AnchorUse, ...]:
        """The trust anchors that open tunnels need: see core_anchors."""
        rows = self._snapshot("anchor_use", "core_anchors", 8)
        return tuple(
            AnchorUse(anchor=_digest(self.native.ffi, row.anchor), connections=row.connections, tunnels=row.tunnels)
            for row in rows
        )

    def _snapshot(self, structure: str, function: str, capacity: int) -> list[Any]:
        while True:
            out = self.native.ffi.new(f"struct ns_{structure}[]", capacity)
            count = getattr(self.native.lib, function)(self.handle, out, capacity)
            if count <= capacity:
                # A row does not keep the array alive that it lies in.
                return _Rows(out, count)
            capacity = count + count // 4

    def _text(self, text: str) -> Any:
        """A C string, which lasts as long as what is returned."""
        return self.native.ffi.new("char[]", text.encode())

    def _call(self, function: str, *arguments: Any) -> None:
        error = self.native.ffi.new("char[]", _ERROR_SIZE)
        if getattr(self.native.lib, function)(self.handle, *arguments, error, _ERROR_SIZE) != 0:
            raise NativeError(_line(self.native.ffi, error))


class _Rows(list[Any]):
    """Rows of a cffi array together with the array that owns their memory."""

    def __init__(self, owner: Any, count: int) -> None:
        super().__init__(owner[index] for index in range(count))
        self._owner = owner


class ConnectionSnapshot:
    """The connections of one moment, made into rows only when they are asked for: a busy core has tens of thousands."""

    def __init__(self, ffi: Any, rows: list[Any]) -> None:
        self._ffi = ffi
        self._rows = rows
        rows.sort(key=lambda row: row.id)

    def part(self, wanted: Connections, name_of: NameOf) -> tuple[tuple[Connection, ...], int | None]:
        """The first rows that are wanted, and the id with which to go on; None: there are no more."""
        limit = min(wanted.limit, CONNECTIONS_PART)
        found: list[Connection] = []
        for index in range(bisect_left(self._rows, wanted.first, key=lambda row: row.id), len(self._rows)):
            row = self._rows[index]
            if wanted.live and STATES[row.state] == "closed":
                continue
            if wanted.direction not in (None, DIRECTIONS[row.direction]):
                continue
            name = name_of(row.workload)
            if wanted.workload not in (None, name):
                continue
            if len(found) == limit:
                return tuple(found), row.id
            found.append(_connection_row(self._ffi, row, name))
        return tuple(found), None


def _workload_row(row: Any, name: str | None) -> WorkloadStats:
    limited = {
        met: Limited(refused=one.refused, first_ms=one.first_ms, last_ms=one.last_ms)
        for met, one in zip(LIMITED, row.limited, strict=True)
    }
    limits = Limits(**{limit: getattr(row.limits, limit) for limit in LIMIT_NAMES})
    counters = {counter: getattr(row, counter) for counter in _WORKLOAD_COUNTERS}
    return WorkloadStats(key=row.workload, workload=name, limits=limits, limited=limited, **counters)


def _connection_row(ffi: Any, row: Any, name: str | None) -> Connection:
    return Connection(
        id=row.id,
        workload=name,
        direction=DIRECTIONS[row.direction],
        state=STATES[row.state],
        mtls=bool(row.mtls),
        source=endpoint_text(row.source),
        destination=endpoint_text(row.destination),
        endpoint=endpoint_text(row.endpoint),
        bytes_sent=row.bytes_sent,
        bytes_received=row.bytes_received,
        age_ms=row.age_ms,
        closed_ms=row.closed_ms,
        peer=text(ffi, row.peer),
        tls=text(ffi, row.tls),
        group=text(ffi, row.group),
        signature=text(ffi, row.signature),
        anchor=_digest(ffi, row.anchor),
        reason=text(ffi, row.reason),
    )


def _refusal(ffi: Any, row: Any) -> KeyedRefusal:
    refusal = Refusal(
        workload=None,
        kind=KINDS[row.kind],
        direction=DIRECTIONS[row.direction],
        source=str(unpack_address(row.source)[0]),
        destination=endpoint_text(row.destination),
        reason=text(ffi, row.reason),
        count=row.count,
        first_ms=row.first_ms,
        last_ms=row.last_ms,
        status=row.status,
        peer=text(ffi, row.peer),
        untold=row.untold,
        presented=text(ffi, row.presented),
        expected=text(ffi, row.expected),
    )
    return KeyedRefusal(row.workload, refusal)


def _event(ffi: Any, row: Any, name_of: NameOf) -> Event:
    if row.kind == EVENT_REFUSED:
        key, refusal = _refusal(ffi, row.refusal)
        return PeerRefused(ago_ms=row.ago_ms, refusal=msgspec.structs.replace(refusal, workload=name_of(key)))
    if row.kind == EVENT_LIMIT:
        met = row.limit
        return LimitReached(
            ago_ms=row.ago_ms,
            workload=name_of(met.workload),
            limit=LIMITED[met.limit],
            value=met.value,
            refused=met.refused,
        )
    connection = _connection_row(ffi, row.connection, name_of(row.connection.workload))
    return _CONNECTION_EVENTS[row.kind](ago_ms=row.ago_ms, connection=connection)


def text(ffi: Any, array: Any) -> str:
    """A char array up to its terminating zero."""
    return bytes(ffi.string(array)).decode("utf-8", "replace")


def _digest(ffi: Any, array: Any) -> str:
    """Bytes as hexadecimal digits; "" of zeros."""
    digest = bytes(ffi.buffer(array))
    return digest.hex() if any(digest) else ""


def _line(ffi: Any, error: Any) -> str:
    return " ".join(text(ffi, error).split()) or "the core gave no reason"
