"""The agent's side of the core: starting its process and asking it things.

Everything here blocks (bounded by a timeout) and belongs into one thread; the agent keeps a thread for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nodeseal.contracts.mesh import decode_difference, encode_difference
from nodeseal.contracts.refusal import Refusal
from nodeseal.linux import control_socket
from nodeseal.local import generations
from nodeseal.mesh.address import Address
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Mesh, MeshDifference, WorkloadName
from nodeseal.mesh.spiffe import SpiffeId

_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 20.0


class CoreError(Exception):
    """The core could not be started, or refused a request; the text is one line."""


class CoreGone(CoreError):
    """No core answers on the control socket: it ended, or was never started."""


@dataclass(frozen=True, slots=True)
class CoreWorkload:
    """A workload as the core has it: `roles` are the listeners that it holds."""

    key: int
    name: WorkloadName
    identity: SpiffeId
    addresses: tuple[Address, ...]
    roles: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hello:
    """What a core says of itself. `epoch` is 0 as long as it has no mesh state.

    `build`: see generations.build; `protocol`: the one it speaks; `retired`: another one takes new connections.
    """

    pid: int
    version: str
    build: str
    protocol: int
    generation: int
    retired: bool
    epoch: int
    trust_domain: str
    workloads: tuple[CoreWorkload, ...]


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """How a new core is started."""

    workers: int
    trust_domain: str
    spin_us: int = 0
    congestion_control: str = ""
    warm_ms: int = 0
    """Peers used within so many milliseconds are dialled again ahead of need; 0: none are."""


class CoreClient:
    """One control connection. Every method raises CoreError (refused) or CoreGone (no core)."""

    def __init__(self, connection: socket.socket, timeout: float = _TIMEOUT_S) -> None:
        self._connection = connection
        self.broken = False  # no request can be made on this connection any more
        connection.settimeout(timeout)
        self.pid = control_socket.peer_credentials(connection)[0]

    @classmethod
    def connect(cls, run_dir: Path, timeout: float = _TIMEOUT_S, *, generation: int | None = None) -> CoreClient:
        """Connects to the core of `run_dir` with this number, without one to the newest that runs.

        `timeout` (seconds) is for each request. Raises CoreGone when there is none.
        """
        if generation is None:
            running = list(generations.running(run_dir))
            if not running:
                raise CoreGone(f"no core runs for {run_dir}")
            generation = running[-1]
        path = generations.socket_path(run_dir, generation)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(timeout)
            connection.connect(str(path))
            return cls(connection, timeout)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            raise CoreGone(f"no core of generation {generation} runs for {run_dir}") from error
        except OSError as error:
            connection.close()
            raise CoreError(f"cannot reach the core at {path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Ends the control connection; the core goes on."""
        self._connection.close()

    def hello(self) -> Hello:
        """Who the core is and what it has."""
        answer = self._ask({"op": "hello", "protocol": control_socket.PROTOCOL})
        workloads = tuple(
            CoreWorkload(
                key=row["key"],
                name=WorkloadName.parse(row["name"]),
                identity=SpiffeId.parse(row["identity"]),
                addresses=tuple(map(ip_address, row["addresses"])),
                roles=tuple(row["roles"]),
            )
            for row in answer["workloads"]
        )
        return Hello(
            pid=answer["pid"],
            version=answer["version"],
            build=answer["build"],
            protocol=answer["protocol"],
            generation=answer["generation"],
            retired=answer["retired"],
            epoch=answer["epoch"],
            trust_domain=answer["trust_domain"],
            workloads=workloads,
        )

    def retire(self, limit: float | None) -> None:
        """The core lets its listeners go and ends with its last connection, or after `limit` seconds."""
        self._ask({"op": "retire", "limit_s": limit})

    def live(self) -> tuple[int, int]:
        """(connections, tunnels) that it has now."""
        answer = self._ask({"op": "live"})
        return answer["connections"], answer["tunnels"]

    def workload_add(
        self, key: int, name: WorkloadName, identity: SpiffeId, addresses: Sequence[Address], *, netns_fd: int
    ) -> None:
        """Adds a workload under a new key; `netns_fd` stays the caller's."""
        texts = [str(address) for address in addresses]
        request = {"key": key, "name": str(name), "identity": str(identity), "addresses": texts}
        self._ask({"op": "workload_add", **request}, netns_fd)

    def workload_limits(self, key: int, limits: Limits) -> None:
        """What the workload may have from now on."""
        self._ask({"op": "workload_limits", "key": key, "limits": limits.as_dict()})

    def workload_credentials(
        self, key: int, identity: SpiffeId, *, chain_pem: str, key_pem: str, bundle_pem: str
    ) -> None:
        """Gives a workload its certificate chain (leaf first), private key and trust bundle."""
        pems = {"chain_pem": chain_pem, "key_pem": key_pem, "bundle_pem": bundle_pem}
        self._ask({"op": "workload_credentials", "key": key, "identity": str(identity), **pems})

    def workload_listen(self, key: int, listeners: Mapping[int, int]) -> None:
        """Hands listening sockets over: role -> descriptor (which stays the caller's as well)."""
        self._ask({"op": "workload_listen", "key": key, "roles": list(listeners)}, *listeners.values())

    def workload_unlisten(self, key: int, *roles: int) -> None:
        """The core closes its listeners of these roles; a role it does not have is passed over."""
        self._ask({"op": "workload_unlisten", "key": key, "roles": list(roles)})

    def workload_remove(self, key: int) -> None:
        """The core forgets the workload; what is left of its connections is reset."""
        self._ask({"op": "workload_remove", "key": key})

    def workload_forget(self, name: WorkloadName) -> None:
        """workload_remove by the name, whatever its key is in this core; nothing happens if it does not have it."""
        for row in self.stats()[1]:
            if row["workload"] == str(name):
                self.workload_remove(row["key"])

    def listeners(self, key: int) -> dict[int, int]:
        """The core's listening sockets of a workload: role -> a descriptor that is now the caller's too."""
        answer, fds = self._exchange({"op": "listeners", "key": key})
        return dict(zip(answer["roles"], fds, strict=True))

    def mesh(self, mesh: Mesh, epoch: int) -> None:
        """The whole mesh state."""
        self._send_mesh({"op": "mesh", "epoch": epoch}, "full", mesh.as_difference())

    def mesh_difference(self, difference: MeshDifference, epoch: int, *, base: int) -> None:
        """What changed since the epoch `base`; refused when that is not the one in force."""
        self._send_mesh({"op": "mesh", "epoch": epoch, "base": base}, "difference", difference)

    def _send_mesh(self, request: dict[str, Any], key: str, content: MeshDifference) -> None:
        *first, last = content.parts(control_socket.MESH_PART)
        for number, part in enumerate(first):
            self._ask({"op": "mesh_part", "number": number, "part": json.loads(bytes(encode_difference(part)))})
        self._ask({**request, "parts": len(first), key: json.loads(bytes(encode_difference(last)))})

    def mesh_read(self) -> Mesh | None:
        """The mesh state that the core decides by, or None when it never had one."""
        parts: list[MeshDifference] = []
        first: int | None = 0
        while first is not None:
            answer = self._ask({"op": "mesh_read", "first": first})
            if answer["part"] is None:
                return None
            parts.append(decode_difference(json.dumps(answer["part"]).encode()))
            first = answer["next"]
        return Mesh.from_difference(MeshDifference.joined(parts))

    def connections(self) -> list[dict[str, Any]]:
        """Live and lately closed connections; rows as native.Core.connections, `workload` by its name."""
        return self.observe()[0]

    def observe(self) -> tuple[list[dict[str, Any]], list[Refusal]]:
        """(connections, peers that were refused in the last day); of the latter a core of an older version has none."""
        answer = self._ask({"op": "connections"})
        return answer["connections"], [Refusal.from_wire(row) for row in answer.get("refused", [])]

    def stats(self) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """(the process's counters, a row a workload with `key` and `workload`)."""
        answer = self._ask({"op": "stats"})
        return answer["core"], answer["workloads"]

    def stop(self) -> None:
        """The core resets its connections and ends."""
        self._ask({"op": "stop"})

    def _ask(self, request: dict[str, Any], *fds: int) -> dict[str, Any]:
        answer, received = self._exchange(request, *fds)
        control_socket.close_all(received)
        return answer

    def _exchange(self, request: dict[str, Any], *fds: int) -> tuple[dict[str, Any], list[int]]:
        try:
            control_socket.send(self._connection, request, fds)
            answer, received = control_socket.receive(self._connection)
        except control_socket.ControlClosed as error:
            self.broken = True
            raise CoreGone("the core ended") from error
        except control_socket.ControlError as error:
            # A late answer would be taken for the next request's.
            self.broken = True
            raise CoreError(f"the core does not answer: {error}") from error
        if answer.get("ok") is not True:
            control_socket.close_all(received)
            raise CoreError(str(answer.get("error", "the core refused without a reason")))
        return answer, received


CORE_COMMAND = (sys.executable, "-m", "nodeseal", "core")


def spawn(
    run_dir: Path, options: CoreOptions, generation: int = 1, *, core_command: Sequence[str] = CORE_COMMAND
) -> subprocess.Popen[bytes]:
    """Starts a core in a session of its own and waits until it serves its control socket.

    Its log goes to run_dir/core.log. Raises CoreError with the core's own line when it does not start.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    command = [*core_command, "--run-dir", str(run_dir), "--ready-fd", str(writing)]
    command += ["--generation", str(generation), "--build", generations.build()]
    command += ["--workers", str(options.workers), "--trust-domain", options.trust_domain]
    command += ["--spin-us", str(options.spin_us), "--congestion-control", options.congestion_control]
    command += ["--warm-ms", str(options.warm_ms)]
    try:
        try:
            log_fd = os.open(
                run_dir / generations.LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log_fd,
                    stderr=log_fd,
                    pass_fds=(writing,),
                    start_new_session=True,
                )
            finally:
                os.close(log_fd)
        finally:
            os.close(writing)
        said = _read_until_ready(reading)
    except OSError as error:
        raise CoreError(f"cannot start the core: {error.strerror or error}") from error
    finally:
        os.close(reading)
    if said != b"ready\n":
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        line = said.decode("utf-8", "replace").strip() or f"it said nothing; see {run_dir / generations.LOG_NAME}"
        raise CoreError(f"the core did not start: {line}")
    return process


def _read_until_ready(reading: int) -> bytes:
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    said = b""
    while poller.poll(int(_START_TIMEOUT_S * 1000)):
        chunk = os.read(reading, 4096)
        said += chunk
        if not chunk or said == b"ready\n":
            return said
    return said or b"no sign of life in time"
