"""The agent's side of a core: asking it things over its control socket.

How it works: a client has two connections, one for what may take long to list, so that nothing else waits behind it.
Each is made when it is first needed, and made again after one that broke. There is one request at a time on it; whoever
asks waits in turn. A request that gets no answer in time, or whose asker is cancelled, costs the connection: a late
answer would be taken for the next request's. Nothing here waits but by `await`, so that a core that hangs costs nobody
but those who ask it. What takes long to compute about a large mesh state is done in a thread.

Nothing that a core says is trusted: what is not an answer of nodeseal.contracts.core is an error, and descriptors that
nobody asked for are closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from msgspec import UNSET, Raw

from nodeseal.contracts import core
from nodeseal.contracts.core import Connection, CoreStats, WorkloadStats
from nodeseal.contracts.events import Told, read_told
from nodeseal.contracts.mesh import decode_difference, encode_difference
from nodeseal.contracts.refusal import Refusal
from nodeseal.identity.key import PrivateKey, PrivateKeyError
from nodeseal.linux.control_channel import ControlChannel
from nodeseal.linux.control_socket import ControlClosed, ControlError, close_all
from nodeseal.local import generations
from nodeseal.mesh.address import Address
from nodeseal.mesh.former import from_former, to_former, without_fronts
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Mesh, MeshDifference, WorkloadName, difference
from nodeseal.mesh.spiffe import Identity, SpiffeId

_TIMEOUT_S = 10.0

A = TypeVar("A", bound=core.Answer)


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

    @classmethod
    def of(cls, row: core.CoreWorkload) -> CoreWorkload:
        """Raises ValueError for a name, an identity or an address that is none."""
        return cls(
            key=row.key,
            name=WorkloadName.parse(row.name),
            identity=SpiffeId.parse(row.identity),
            addresses=tuple(map(ip_address, row.addresses)),
            roles=row.roles,
        )


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


@dataclass(slots=True)
class _Conversation:
    """What goes over one control connection; `turn` is held from a request to its answer."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    channel: ControlChannel | None = None

    def end(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class CoreClient:
    """Asks the core with this number. Every method raises CoreError (refused, or no answer) or CoreGone (no core).

    All methods belong to one event loop.
    """

    def __init__(self, run_dir: Path, generation: int, timeout: float = _TIMEOUT_S, *, pid: int | None = None) -> None:
        """`timeout` (seconds) is for each request, with connecting if need be. `pid`: the only process that is to be
        asked; None: whichever answers first."""
        self.generation = generation
        self.pid = pid
        self._path = generations.socket_path(run_dir, generation)
        self._gone = f"no core of generation {generation} runs for {run_dir}"
        self._timeout = timeout
        self._protocol = core.PROTOCOL
        self._ordinary = _Conversation()
        self._listing = _Conversation()
        self._closed = False
        self._transfer = asyncio.Lock()
        self._revoking = asyncio.Lock()

    @classmethod
    def newest(cls, run_dir: Path, timeout: float = _TIMEOUT_S) -> CoreClient:
        """Of the newest core that runs for `run_dir`. Raises CoreGone when there is none."""
        running = list(generations.running(run_dir))
        if not running:
            raise CoreGone(f"no core runs for {run_dir}")
        return cls(run_dir, running[-1], timeout)

    def close(self) -> None:
        """Ends the control connection, and whoever waits for an answer gets CoreGone; the core goes on."""
        self._closed = True
        self._ordinary.end()
        self._listing.end()

    # ---- about the core itself

    async def hello(self) -> Hello:
        """Who the core is and what it has."""
        answer = await self._ask(core.Hello(protocol=core.PROTOCOL))
        try:
            workloads = tuple(map(CoreWorkload.of, answer.workloads))
        except ValueError as error:
            raise CoreError(f"the core says what cannot be: {error}") from None
        self._protocol = answer.protocol
        return Hello(
            pid=answer.pid,
            version=answer.version,
            build=answer.build,
            protocol=answer.protocol,
            generation=answer.generation,
            retired=answer.retired,
            epoch=answer.epoch,
            trust_domain=answer.trust_domain,
            workloads=workloads,
        )

    async def retire(self, limit: float | None) -> None:
        """The core lets its listeners go and ends with its last connection, or after `limit` seconds."""
        await self._ask(core.Retire(limit_s=limit))

    async def live(self) -> tuple[int, int]:
        """(connections, tunnels) that it has now."""
        answer = await self._ask(core.Live())
        return answer.connections, answer.tunnels

    async def stop(self) -> None:
        """The core resets its connections and ends."""
        await self._ask(core.Stop())

    # ---- workloads

    async def workload_add(
        self, key: int, name: WorkloadName, identity: Identity, addresses: Sequence[Address], *, netns_fd: int
    ) -> None:
        """Adds a workload under a new key; `netns_fd` stays the caller's."""
        texts = tuple(map(str, addresses))
        await self._ask(core.WorkloadAdd(key=key, name=str(name), identity=str(identity), addresses=texts), netns_fd)

    async def workload_addresses(self, key: int, addresses: Sequence[Address]) -> None:
        """What its own addresses are from now on. Does nothing to a core that keeps those that it was told first."""
        if self._protocol >= core.ADDRESSES_SINCE:
            await self._ask(core.WorkloadAddresses(key=key, addresses=tuple(map(str, addresses))))

    async def workload_limits(self, key: int, limits: Limits) -> None:
        """What the workload may have from now on. Does nothing to a core that knows no limits."""
        if self._protocol >= core.LIMITS_SINCE:
            await self._ask(core.WorkloadLimits(key=key, limits=limits))

    async def workload_credentials(
        self, key: int, identity: Identity, *, chain_pem: str, private_key: PrivateKey, bundle_pem: str
    ) -> None:
        """Gives a workload its certificate chain (leaf first) and private key; to a core that takes trust anchors only
        with them, these as well. The key goes in a descriptor, to cores of former versions as text."""
        try:
            if self._protocol >= core.KEY_FD_SINCE:
                with private_key.exported() as fd:
                    await self.workload_credentials_from(key, identity, chain_pem=chain_pem, key_fd=fd)
                return
            text = private_key.pem()
        except PrivateKeyError as error:
            raise CoreError(f"the private key cannot be handed to the core: {error}") from None
        await self._ask(
            core.WorkloadCredentials(
                key=key,
                identity=str(identity),
                chain_pem=chain_pem,
                key_pem=text,
                bundle_pem=UNSET if self._protocol >= core.TRUST_APART_SINCE else bundle_pem,
            )
        )

    async def workload_credentials_from(self, key: int, identity: Identity, *, chain_pem: str, key_fd: int) -> None:
        """The same with the key in a descriptor, which stays the caller's (contracts.core.WorkloadCredentials says what
        it may be). To be asked of cores that take it so (contracts.core.KEY_FD_SINCE)."""
        request = core.WorkloadCredentials(key=key, identity=str(identity), chain_pem=chain_pem, key_fd=True)
        await self._ask(request, key_fd)

    async def trust_bundles(self, own: str, bundles: Mapping[str, str]) -> None:
        """The trust domains that peers of all workloads may be of from now on, and the anchors (PEM) of each. `own` is
        the core's, and among them. A core that knows no other domain gets its own; to be asked of cores that take
        anchors apart from credentials (contracts.core.TRUST_APART_SINCE)."""
        if self._protocol < core.FEDERATION_SINCE:
            await self._ask(core.TrustBundle(trust_domain=own, bundle_pem=bundles[own]))
            return
        rows = tuple(core.DomainBundle(trust_domain=domain, bundle_pem=pem) for domain, pem in bundles.items())
        await self._ask(core.TrustBundles(bundles=rows))

    async def revocations(
        self, revoked: Sequence[core.Digest], restored: Sequence[core.Digest] = (), *, whole: bool
    ) -> int | None:
        """What is revoked from now on, by digests (nodeseal.mesh.revoked): all of it, or a difference to what the core
        has. How many are revoked then; None: the core knows of no revocation."""
        if self._protocol < core.REVOCATION_SINCE:
            return None
        async with self._revoking:
            size, answer = core.REVOCATIONS_PART, core.RevocationsInForce(count=0)
            parts = max(1, -(-max(len(revoked), len(restored)) // size))
            for number in range(parts):
                piece = slice(number * size, (number + 1) * size)
                answer = await self._ask(
                    core.Revocations(
                        number=number,
                        last=number == parts - 1,
                        whole=whole,
                        revoked=tuple(revoked[piece]),
                        restored=tuple(restored[piece]),
                    )
                )
            return answer.count

    async def workload_listen(self, key: int, listeners: Mapping[int, int]) -> None:
        """Hands listening sockets over: role -> descriptor (which stays the caller's as well)."""
        await self._ask(core.WorkloadListen(key=key, roles=tuple(listeners)), *listeners.values())

    async def workload_unlisten(self, key: int, *roles: int) -> None:
        """The core closes its listeners of these roles; a role it does not have is passed over."""
        await self._ask(core.WorkloadUnlisten(key=key, roles=roles))

    async def workload_remove(self, key: int) -> None:
        """The core forgets the workload; what is left of its connections is reset."""
        await self._ask(core.WorkloadRemove(key=key))

    async def workload_forget(self, name: WorkloadName) -> None:
        """workload_remove by the name, whatever its key is in this core; nothing happens if it does not have it."""
        for row in (await self.stats())[1]:
            if row.workload == str(name):
                await self.workload_remove(row.key)

    async def listeners(self, key: int) -> dict[int, int]:
        """The core's listening sockets of a workload: role -> a descriptor that is now the caller's too. Await it where
        they are taken: a task of its own that is cancelled would leak them."""
        answer, fds = await self._exchange(core.Listeners(key=key))
        if len(answer.roles) != len(fds) or len(set(answer.roles)) != len(fds):
            close_all(fds)
            raise CoreError(f"the core handed over {len(fds)} descriptors for the roles {answer.roles}")
        return dict(zip(answer.roles, fds, strict=True))

    # ---- the mesh state

    async def mesh(self, mesh: Mesh, epoch: int) -> None:
        """The whole mesh state."""
        async with self._transfer:
            mesh = await asyncio.to_thread(self._as_known, mesh)
            number, last = await self._send_parts(mesh.as_difference())
            await self._ask(core.MeshChange(epoch=epoch, parts=number, full=last))

    async def mesh_change(self, old: Mesh, new: Mesh, epoch: int, *, base: int) -> bool:
        """What has changed since the epoch `base`, which has the mesh state `old`; refused when that epoch is not in
        force. False: nothing has, and nothing was sent."""
        change = await asyncio.to_thread(lambda: difference(self._as_known(old), self._as_known(new)))
        if not change.size:
            return False
        async with self._transfer:
            number, last = await self._send_parts(change)
            await self._ask(core.MeshChange(epoch=epoch, base=base, parts=number, difference=last))
        return True

    def _as_known(self, mesh: Mesh) -> Mesh:
        """As the core's protocol can have it."""
        if self._protocol < core.FRONTS_SINCE:
            mesh = without_fronts(mesh)
        return to_former(mesh) if self._protocol < core.ADDRESSES_SINCE else mesh

    async def _send_parts(self, content: MeshDifference) -> tuple[int, Raw]:
        """All parts but the last: (how many these are, the last one)."""
        *first, last = content.parts(core.MESH_PART)
        for number, part in enumerate(first):
            await self._ask(core.MeshPart(number=number, part=encode_difference(part)))
        return len(first), encode_difference(last)

    async def mesh_read(self) -> Mesh | None:
        """The mesh state that the core decides by, or None when it never had one."""
        pieces: list[Raw] = []
        first: int | None = 0
        while first is not None:
            answer = await self._ask(core.MeshRead(first=first))
            if answer.part == core.NO_MESH:
                return None
            if answer.next is not None and answer.next <= first:
                raise CoreError("the core gives the same part of its mesh state again and again")
            pieces.append(answer.part)
            first = answer.next
        try:
            mesh = await asyncio.to_thread(_joined, pieces)
            return from_former(mesh) if self._protocol < core.ADDRESSES_SINCE else mesh
        except ValueError as error:
            raise CoreError(f"the core has a mesh state that cannot be read: {error}") from None

    # ---- what is observed

    async def connections(self, wanted: core.Connections) -> tuple[list[Connection], int | None]:
        """(live and lately closed connections in the order of their ids, the `first` of the next part; None: there are
        no more). Those of an old core are not chosen from."""
        answer = await self._ask(wanted)
        if answer.next is not None and answer.next <= wanted.first:
            raise CoreError("the core gives the same connections again and again")
        return sorted(answer.connections, key=lambda row: row.id), answer.next

    async def refusals(self) -> list[Refusal]:
        """Peers that were refused in the last day."""
        if self._protocol < core.PARTS_SINCE:
            return list((await self._ask(core.Connections())).refused)
        return list((await self._ask(core.Refusals())).refused)

    async def anchors(self) -> dict[str, int] | None:
        """By the digest of each trust anchor that verified the peers of open tunnels: how many connections these have
        now. None: the core is too old to know."""
        if self._protocol < core.ANCHORS_SINCE:
            return None
        return {one.anchor: one.connections for one in (await self._ask(core.Anchors())).anchors}

    async def stats(self) -> tuple[CoreStats, tuple[WorkloadStats, ...]]:
        """(the process's counters, a row a workload)."""
        answer = await self._ask(core.Stats())
        return answer.core, answer.workloads

    async def events(self) -> AsyncGenerator[Told, None]:
        """What the core tells from now on, on a connection of its own. Ends with CoreError or CoreGone."""
        channel = await self._connect()
        try:
            async with asyncio.timeout(self._timeout):
                await channel.send(core.encode(core.Subscribe()))
                body, fds = await channel.receive()
            close_all(fds)
            answer = core.read_answer(body, core.Answer)
            if isinstance(answer, core.Refused):
                raise CoreError(answer.error)
            while True:
                body, fds = await channel.receive()
                close_all(fds)
                yield read_told(body)
        except TimeoutError:
            raise CoreError("the core does not answer: no message on the control socket in time") from None
        except ControlClosed as error:
            raise CoreGone("the core ended") from error
        except (ControlError, core.MessageError, ValueError) as error:
            raise CoreError(f"the core tells what cannot be read: {error}") from error
        finally:
            channel.close()

    # ---- inside

    async def _ask(self, request: core.Request[A], *fds: int) -> A:
        answer, received = await self._exchange(request, *fds)
        close_all(received)
        return answer

    async def _exchange(self, request: core.Request[A], *fds: int) -> tuple[A, list[int]]:
        """The answer, and descriptors that are the caller's to close."""
        body = core.encode(request)
        conversation = self._listing if isinstance(request, core.Connections | core.Refusals) else self._ordinary
        async with conversation.turn:
            answer_body, received = await self._round_trip(conversation, body, fds)
        try:
            answer = core.read_answer(answer_body, core.answer_type(type(request)))
        except core.MessageError as error:
            close_all(received)
            raise CoreError(f"the core gave {error}") from None
        if isinstance(answer, core.Refused):
            close_all(received)
            raise CoreError(answer.error)
        return answer, received

    async def _round_trip(
        self, conversation: _Conversation, body: bytes, fds: Sequence[int]
    ) -> tuple[bytes, list[int]]:
        try:
            async with asyncio.timeout(self._timeout):
                if conversation.channel is None:
                    conversation.channel = await self._connect()
                await conversation.channel.send(body, fds)
                return await conversation.channel.receive()
        except BaseException as error:
            # A late answer would be taken for the next request's.
            conversation.end()
            if isinstance(error, TimeoutError):
                raise CoreError("the core does not answer: no message on the control socket in time") from None
            if isinstance(error, ControlClosed):
                raise CoreGone("the core ended") from error
            if isinstance(error, ControlError):
                raise CoreError(f"the core does not answer: {error}") from error
            raise

    async def _connect(self) -> ControlChannel:
        if self._closed:
            raise CoreGone("the agent has let go of the core")
        try:
            channel = await ControlChannel.connect(self._path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise CoreGone(self._gone) from error
        except OSError as error:
            raise CoreError(f"cannot reach the core at {self._path}: {error.strerror or error}") from error
        if self.pid not in (None, channel.pid):
            channel.close()
            raise CoreGone(f"the core (pid {self.pid}) is another process by now")
        self.pid = channel.pid
        return channel


def _joined(pieces: Sequence[Raw]) -> Mesh:
    return Mesh.from_difference(MeshDifference.joined(list(map(decode_difference, pieces))))
