"""The splice core's process: `nodeseal core --run-dir DIR`.

The main thread serves the control socket, the C core's worker threads move bytes, one thread decides (decider.py).
The process survives the agent: it keeps its listeners, its credentials and the last mesh state, and ends only on
SIGTERM, the op "stop", or, once it is retired (another core takes what is new), with its last connection. It must stay
small: of nodeseal it imports the mesh model and this package, nothing else.

Ops (a request's further fields -> the answer's), one request at a time. An agent may meet a core of another version:
those with a * keep their form in every version of the protocol, whatever becomes of the others.
* hello {protocol} -> {pid, version, build, protocol, generation, retired, epoch, trust_domain,
    workloads: [{key, name, identity, address, roles}]}
* retire {limit_s}: lets listeners go, ends with the last connection, or after limit_s seconds (null: no limit)
* live {} -> {connections, tunnels}; listeners {key} -> {roles} + one descriptor a role; stop {}
  workload_add {key, name, identity, address} + network namespace descriptor
  workload_limits {key, limits: {connections, memory, new_connections}}
  workload_credentials {key, chain_pem, key_pem, bundle_pem}
  workload_listen {key, roles} + one descriptor a role
  workload_unlisten {key, roles};  workload_remove {key}
  mesh {epoch, parts, full} or {epoch, parts, base, difference}: the model, then the epoch. What is too large for one
    message comes before, as `parts` requests mesh_part {number, part}, with nothing else in between
  mesh_read {first} -> {part, next}: the model from its object number `first` on, `next` null at its end
  connections {} -> {connections, refused};  stats {} -> {core, workloads}
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nodeseal import __version__
from nodeseal.linux import control_socket, hardening
from nodeseal.linux.lock_file import AlreadyLocked, LockFile
from nodeseal.local import generations
from nodeseal.mesh.address import Address
from nodeseal.mesh.limits import LIMIT_NAMES, Limits
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.splice import native
from nodeseal.splice.decider import Decider, State
from nodeseal.splice.published import published_anew, published_change
from nodeseal.splice.transfer import Incoming, TransferError, part_of

log = logging.getLogger("nodeseal.core")

_PEER_TIMEOUT_S = 10.0
_RETIRED_CHECK_S = 1.0
_ACCEPT_PAUSE_S = 0.2  # when no descriptor can be had
WORKERS_MAX = 64
_SWITCH_S = 0.0005  # a flow that waits for a decision waits no longer for the lock while a mesh state is taken in


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


Answer = tuple[dict[str, Any], list[int]]


class ControlServer:
    """Carries out control requests on a core and its decider. Not thread-safe: the main thread owns it."""

    def __init__(self, core: native.Core, *, trust_domain: str, generation: int = 1, build: str = "") -> None:
        self._core = core
        self._trust_domain = trust_domain
        self._generation = generation
        self._build = build
        self.retired = False
        self._ends_at: float | None = None
        self._records: dict[int, Record] = {}
        self.decider = Decider(core, self._name_of)
        self.stopping = False
        self._incoming = Incoming()
        self._ops: dict[str, Callable[[dict[str, Any], list[int]], Answer]] = {
            "hello": self._hello,
            "retire": self._retire,
            "live": self._live,
            "workload_add": self._workload_add,
            "workload_limits": self._workload_limits,
            "workload_credentials": self._workload_credentials,
            "workload_listen": self._workload_listen,
            "workload_unlisten": self._workload_unlisten,
            "workload_remove": self._workload_remove,
            "listeners": self._listeners,
            "mesh_part": self._mesh_part,
            "mesh": self._mesh,
            "mesh_read": self._mesh_read,
            "connections": self._connections,
            "stats": self._stats,
            "stop": self._stop,
        }

    def _name_of(self, key: int) -> WorkloadName | None:
        record = self._records.get(key)
        return record.name if record is not None else None

    def handle(self, request: dict[str, Any], fds: list[int]) -> Answer:
        """The answer to a request, and descriptors to send with it (kept open here). Takes over `fds`; never raises."""
        try:
            op = self._ops.get(str(request.get("op")))
            if op is None:
                raise RequestError(f"the core does not know the operation {request.get('op')!r}")
            answer, answer_fds = op(request, fds)
            return {"ok": True, **answer}, answer_fds
        except (RequestError, TransferError, native.NativeError) as error:
            return {"ok": False, "error": str(error)}, []
        except (KeyError, TypeError, ValueError) as error:
            return {"ok": False, "error": f"malformed request {request.get('op')!r}: {error!r}"}, []
        except Exception as error:
            log.error("request %r failed: %r", request.get("op"), error)
            return {"ok": False, "error": f"internal error: {error!r}"}, []
        finally:
            control_socket.close_all(fds)

    def _hello(self, request: dict[str, Any], fds: list[int]) -> Answer:
        state = self.decider.state
        workloads = [
            {
                "key": record.key,
                "name": str(record.name),
                "identity": str(record.identity),
                "addresses": [str(address) for address in record.addresses],
                "roles": sorted(record.listeners),
            }
            for record in self._records.values()
        ]
        return {
            "pid": os.getpid(),
            "version": __version__,
            "build": self._build,
            "protocol": control_socket.PROTOCOL,
            "generation": self._generation,
            "retired": self.retired,
            "epoch": state.epoch if state is not None else 0,
            "trust_domain": self._trust_domain,
            "workloads": workloads,
        }, []

    def _retire(self, request: dict[str, Any], fds: list[int]) -> Answer:
        limit = request["limit_s"]
        self._ends_at = time.monotonic() + float(limit) if limit is not None else None
        if not self.retired:
            self.retired = True
            self._core.retire()
            for record in self._records.values():
                control_socket.close_all(record.listeners.values())
                record.listeners.clear()
            log.info("retired: another core takes new connections; this one ends with its last")
        return {}, []

    def _live(self, request: dict[str, Any], fds: list[int]) -> Answer:
        stats = self._core.stats()
        return {"connections": stats["live_connections"], "tunnels": _tunnels(stats)}, []

    def finished(self) -> bool:
        """Whether a retired core has nothing left to do, or no more time for it."""
        if not self.retired:
            return False
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            log.warning("retired for as long as is allowed: what is left of its connections is reset")
            return True
        stats = self._core.stats()
        return not stats["live_connections"] and not _tunnels(stats)

    def _record(self, request: dict[str, Any]) -> Record:
        record = self._records.get(int(request["key"]))
        if record is None:
            raise RequestError(f"the core has no workload with the key {request['key']}")
        return record

    def _workload_add(self, request: dict[str, Any], fds: list[int]) -> Answer:
        if len(fds) != 1:
            raise RequestError("workload_add needs one descriptor, the network namespace")
        record = Record(
            key=int(request["key"]),
            name=WorkloadName.parse(request["name"]),
            identity=SpiffeId.parse(request["identity"]),
            addresses=tuple(map(ip_address, request["addresses"])),
        )
        if not record.addresses:
            raise RequestError(f"workload_add of {record.name} without an address")
        if record.key in self._records:
            raise RequestError(f"the core already has a workload with the key {record.key}")
        # The name first: a question may come as soon as the C side knows the workload.
        self._records[record.key] = record
        try:
            self._core.workload_add(record.key, fds[0], record.addresses[0])
        except native.NativeError:
            del self._records[record.key]
            raise
        where = ", ".join(map(str, record.addresses))
        log.info("workload %s added, address %s, key %d", record.name, where, record.key)
        return {}, []

    def _workload_limits(self, request: dict[str, Any], fds: list[int]) -> Answer:
        record = self._record(request)
        limits = Limits(**{name: int(request["limits"][name]) for name in LIMIT_NAMES})
        self._core.workload_limits(record.key, limits)
        log.info("workload %s has the limits %s", record.name, limits.as_dict())
        return {}, []

    def _workload_credentials(self, request: dict[str, Any], fds: list[int]) -> Answer:
        record = self._record(request)
        identity = SpiffeId.parse(request["identity"])
        self._core.workload_credentials(record.key, request["chain_pem"], request["key_pem"], request["bundle_pem"])
        record.identity = identity
        log.info("workload %s has new credentials for %s", record.name, identity)
        return {}, []

    def _workload_listen(self, request: dict[str, Any], fds: list[int]) -> Answer:
        record = self._record(request)
        if self.retired:
            raise RequestError("this core is retired: new connections are another one's")
        roles = [int(role) for role in request["roles"]]
        if len(roles) != len(fds) or not set(roles) <= set(native.ROLES) or len(set(roles)) != len(roles):
            raise RequestError(f"workload_listen with roles {roles} and {len(fds)} descriptors")
        taken = [role for role in roles if role in record.listeners]
        if taken:
            raise RequestError(f"workload {record.name} already listens in the roles {taken}")
        for role, fd in zip(roles, list(fds), strict=True):
            self._core.workload_listen(record.key, role, fd)
            record.listeners[role] = fd
            fds.remove(fd)
        log.info("workload %s listens in the roles %s", record.name, roles)
        return {}, []

    def _workload_unlisten(self, request: dict[str, Any], fds: list[int]) -> Answer:
        record = self._record(request)
        for role in request["roles"]:
            if role in record.listeners:
                self._core.workload_unlisten(record.key, role)
                os.close(record.listeners.pop(role))
        log.info("workload %s no longer listens in the roles %s", record.name, request["roles"])
        return {}, []

    def _workload_remove(self, request: dict[str, Any], fds: list[int]) -> Answer:
        record = self._record(request)
        self._core.workload_remove(record.key)
        del self._records[record.key]
        control_socket.close_all(record.listeners.values())
        log.info("workload %s removed", record.name)
        return {}, []

    def _listeners(self, request: dict[str, Any], fds: list[int]) -> Answer:
        listeners = sorted(self._record(request).listeners.items())
        return {"roles": [role for role, _fd in listeners]}, [fd for _role, fd in listeners]

    def _mesh_part(self, request: dict[str, Any], fds: list[int]) -> Answer:
        self._incoming.add(int(request["number"]), request["part"])
        return {}, []

    def _mesh(self, request: dict[str, Any], fds: list[int]) -> Answer:
        content = self._incoming.complete(
            int(request.get("parts", 0)), request["full"] if "full" in request else request["difference"]
        )
        epoch = int(request["epoch"])
        state = self.decider.state
        if state is not None and epoch <= state.epoch:
            raise RequestError(f"mesh epoch {epoch} is not after {state.epoch}")
        before = state.mesh if state is not None else None
        if "full" in request:
            mesh = Mesh.from_difference(content)
            change = published_anew(before, mesh)
        else:
            if state is None or request["base"] != state.epoch:
                raise RequestError(f"mesh difference to the epoch {request['base']}, which is not in force")
            mesh = state.mesh.apply(content)
            change = published_change(before, content)
        # What is added comes first: an address that both have is not forgotten for a moment.
        self._core.publish(change.added)
        self._core.withdraw(change.withdrawn)
        self.decider.state = State(mesh, epoch)
        self._core.epoch(epoch)
        log.info("mesh epoch %d: %d workloads, %d services", epoch, len(mesh.workloads), len(mesh.services))
        return {}, []

    def _mesh_read(self, request: dict[str, Any], fds: list[int]) -> Answer:
        state = self.decider.state
        if state is None:
            return {"part": None, "next": None}, []
        part, following = part_of(state.mesh, int(request["first"]))
        return {"part": part, "next": following}, []

    def _connections(self, request: dict[str, Any], fds: list[int]) -> Answer:
        rows = self._core.connections()
        for row in rows:
            name = self._name_of(row["workload"])
            row["workload"] = str(name) if name is not None else None
        refused = []
        for key, refusal in self._core.refusals():
            name = self._name_of(key)
            refused.append(replace(refusal, workload=str(name) if name is not None else None).to_wire())
        return {"connections": rows, "refused": refused}, []

    def _stats(self, request: dict[str, Any], fds: list[int]) -> Answer:
        rows: list[dict[str, Any]] = []
        for row in self._core.workload_stats():
            name = self._name_of(row["workload"])
            rows.append({**row, "key": row["workload"], "workload": str(name) if name is not None else None})
        return {"core": self._core.stats(), "workloads": rows}, []

    def _stop(self, request: dict[str, Any], fds: list[int]) -> Answer:
        self.stopping = True
        return {}, []


def _tunnels(stats: dict[str, int]) -> int:
    """With those whose handshake is not done: a retired core still brings it to its end."""
    return stats["live_tunnels"] + stats["strangers"]


def serve(server: ControlServer, listener: socket.socket, wake: socket.socket) -> None:
    """Serves requests until the op "stop", until anything arrives on `wake` (a signal), or until a retired core has
    finished."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        peers: set[socket.socket] = set()
        try:
            look_at = 0.0
            while not server.stopping:
                ready_keys = selector.select(_RETIRED_CHECK_S if server.retired else None)
                if server.retired and time.monotonic() >= look_at:
                    look_at = time.monotonic() + _RETIRED_CHECK_S
                    if server.finished():
                        return
                for key, _events in ready_keys:
                    ready = key.fileobj
                    if ready is wake:
                        return
                    if ready is listener:
                        peer = _accept(listener)
                        if peer is not None:
                            peers.add(peer)
                            selector.register(peer, selectors.EVENT_READ)
                    elif isinstance(ready, socket.socket) and not _serve_one(server, ready):
                        selector.unregister(ready)
                        peers.discard(ready)
                        ready.close()
        finally:
            for peer in peers:
                peer.close()


def _accept(listener: socket.socket) -> socket.socket | None:
    try:
        peer, _address = listener.accept()
    except OSError as error:
        log.error("cannot accept on the control socket: %s", error.strerror)
        time.sleep(_ACCEPT_PAUSE_S)  # whoever dialled still waits, and wakes us again at once
        return None
    pid, uid = control_socket.peer_credentials(peer)
    if uid not in (0, os.geteuid()):
        log.warning("control connection of pid %d, uid %d turned away", pid, uid)
        peer.close()
        return None
    peer.settimeout(_PEER_TIMEOUT_S)
    return peer


def _serve_one(server: ControlServer, peer: socket.socket) -> bool:
    """One request; False when the connection is of no further use."""
    try:
        request, fds = control_socket.receive(peer)
        answer, answer_fds = server.handle(request, fds)
        control_socket.send(peer, answer, answer_fds)
    except control_socket.ControlClosed:
        return False
    except control_socket.ControlError as error:
        log.warning("control connection dropped: %s", error)
        return False
    return True


def parser() -> argparse.ArgumentParser:
    """The command line of `nodeseal core`; the agent fills it, see bridge.spawn."""
    # argparse asks shutil for a width that is not given, and shutil brings three compression libraries: 0.7 MB.
    result = argparse.ArgumentParser(
        prog="nodeseal core",
        description="The splice core; started by the agent.",
        formatter_class=partial(argparse.HelpFormatter, width=100),
    )
    result.add_argument("--run-dir", type=Path, required=True, help="the node's run directory")
    result.add_argument("--generation", type=int, default=1, help="this core's number among those of the node")
    result.add_argument("--build", default="", help="what hello is to tell as this core's build")
    result.add_argument("--trust-domain", required=True, help="the SPIFFE trust domain")
    result.add_argument("--workers", type=int, default=1, help="worker threads, 1 to 64")
    result.add_argument("--spin-us", type=int, default=0, help="microseconds to look for events before a sleep")
    result.add_argument("--congestion-control", default="", help="of connections between nodes")
    result.add_argument("--warm-ms", type=int, default=0, help="dial peers used within it ahead of need")
    result.add_argument("--ready-fd", type=int, default=-1, help=argparse.SUPPRESS)
    return result


def main(arguments: Sequence[str]) -> int:
    """Runs a core until it is told to end; the exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        _run(options)
    except AlreadyLocked as error:
        line = f"another core (pid {error.pid}) runs for {options.run_dir} as generation {options.generation}"
        return _fail(line, options.ready_fd)
    except native.NativeError as error:
        return _fail(str(error), options.ready_fd)
    except OSError as error:
        return _fail(f"cannot start the core in {options.run_dir}: {error}", options.ready_fd)
    return 0


def _fail(line: str, ready_fd: int) -> int:
    log.error("%s", line)
    if ready_fd >= 0:
        with contextlib.suppress(OSError):
            os.write(ready_fd, line.encode()[:4000])
    return 1


def _run(options: argparse.Namespace) -> None:
    if not 1 <= options.workers <= WORKERS_MAX:
        raise native.NativeError(f"--workers {options.workers}: expected 1 to {WORKERS_MAX}")
    hardening.forbid_dumps()
    hardening.raise_descriptor_limit()
    sys.setswitchinterval(_SWITCH_S)
    options.run_dir = options.run_dir.absolute()
    lock = LockFile(generations.lock_path(options.run_dir, options.generation))
    wake, signalled = socket.socketpair()
    with wake, signalled:
        signalled.setblocking(False)
        signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        core = native.Core(
            native.load(),
            workers=options.workers,
            trust_domain=options.trust_domain,
            spin_us=options.spin_us,
            congestion_control=options.congestion_control,
            warm_ms=options.warm_ms,
        )
        path = generations.socket_path(options.run_dir, options.generation)
        try:
            with control_socket.listen(str(path)) as listener:
                server = ControlServer(
                    core, trust_domain=options.trust_domain, generation=options.generation, build=options.build
                )
                server.decider.start()
                log.info(
                    "core %s started, generation %d, pid %d, %d workers",
                    __version__,
                    options.generation,
                    os.getpid(),
                    options.workers,
                )
                os.chdir("/")
                if options.ready_fd >= 0:
                    os.write(options.ready_fd, b"ready\n")
                    os.close(options.ready_fd)
                    options.ready_fd = -1
                try:
                    serve(server, listener, wake)
                finally:
                    server.decider.stop_asking()
                    server.decider.join()
        finally:
            core.stop()
            signal.set_wakeup_fd(-1)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            lock.release(remove=True)
    log.info("core ended, pid %d", os.getpid())
