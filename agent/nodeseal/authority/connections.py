"""Who is connected to the certificate service: bounded, and the first to go is who has proven nothing.

Accepting is done here rather than by asyncio's own server, because that one counts nobody before the handshake is over.
A stranger gives way to whoever comes when there is no room; a node does not. But no node has more than OF_ONE_NODE, so
that one that was taken over cannot keep out the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from nodeseal.mesh.address import ApplicationAddress

log = logging.getLogger("nodeseal.ca")

HANDSHAKE_S = 5.0
OF_ONE_NODE = 32
"""Most connections of one node, the oldest of which gives way: an agent has eight."""
_GOODBYE_S = 2.0
"""For a client's part of the end of TLS."""
_BACKLOG = 4096
_RECEIVE = 64 * 1024
"""What the kernel keeps of a client that sends more than is answered; it would keep megabytes of each (tcp_rmem)."""
_OUT_OF_DESCRIPTORS_S = 0.1


class Connections:
    """Belongs to the event loop."""

    def __init__(
        self,
        context: ssl.SSLContext,
        protocol: Callable[[], asyncio.Protocol],
        most: int,
        node_of: Callable[[bytes | None], str | None],
        failed: Callable[[str, str], None],
    ) -> None:
        """`protocol`: makes what reads and writes; it calls `ended` when it is over. `most`: connections at once.
        `node_of`: whose certificate a client has shown (DER); None: it is a stranger. `failed`: is told the address
        and why, when a handshake fails."""
        self._context = context
        self._protocol = protocol
        self._most = most
        self._node_of = node_of
        self._failed = failed
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._strangers: dict[object, Callable[[], object]] = {}
        """Who has shown no node certificate, or is in its handshake, the oldest first, and how to end it."""
        self._nodes: dict[asyncio.Protocol, str] = {}
        """Who has shown a node certificate: which node."""
        self._of_node: dict[str, dict[asyncio.Protocol, Callable[[], object]]] = {}
        """Of each of them its connections, the oldest first, and how to end each."""
        self._handshakes: set[asyncio.Task[None]] = set()
        self._none_left = asyncio.Event()

    def use(self, context: ssl.SSLContext) -> None:
        """For handshakes that begin from now on."""
        self._context = context

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._strangers) + len(self._nodes)

    def listen(self, where: ApplicationAddress) -> ApplicationAddress:
        """Begins to accept; may be called for several addresses. Where it listens: at every address of IPv4 where
        every one of IPv6 was asked for and the machine has none. Raises OSError."""
        family = socket.AF_INET6 if where.address.version == 6 else socket.AF_INET
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            listener = socket.socket(family, kind)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT or where.address != IPv6Address(0):
                raise
            where, family = ApplicationAddress(IPv4Address(0), where.port), socket.AF_INET
            listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE)
            listener.bind((str(where.address), where.port))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._listeners.append(listener)
        self._accepting.append(asyncio.create_task(self._accept(listener)))
        return ApplicationAddress(where.address, listener.getsockname()[1])

    def close(self) -> None:
        """Accepts nobody more. Who is connected stays."""
        for task in self._accepting:
            task.cancel()
        for listener in self._listeners:
            listener.close()

    async def end(self) -> None:
        """Ends all that there are, without a goodbye."""
        nodes = (end for ends in self._of_node.values() for end in ends.values())
        for end in (*self._strangers.values(), *nodes):
            end()
        if self._handshakes:
            await asyncio.wait(self._handshakes)
        if self.count:
            self._none_left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._none_left.wait()

    def is_node(self, protocol: asyncio.Protocol, node: str) -> None:
        """Who is connected there has proven by a request to be this node."""
        if (end := self._strangers.pop(protocol, None)) is not None:
            self._has(protocol, node, end)

    def ended(self, protocol: asyncio.Protocol) -> None:
        """The connection is no more."""
        if (node := self._nodes.pop(protocol, None)) is not None:
            self._forget(protocol, node)
        self._strangers.pop(protocol, None)
        if not self.count:
            self._none_left.set()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors or memory left; connections that end give them back
                log.warning("cannot accept a connection: %s", error.strerror or error)
                await asyncio.sleep(_OUT_OF_DESCRIPTORS_S)
                continue
            if self.count >= self._most and not self._make_room():
                accepted.close()
                self._failed(address[0], f"{self._most:,} nodes are connected, which is the limit")
                continue
            task = asyncio.create_task(self._welcome(accepted, address[0]))
            self._handshakes.add(task)
            self._strangers[task] = task.cancel
            task.add_done_callback(self._welcomed)

    def _make_room(self) -> bool:
        """Ends the stranger that has been here for the longest."""
        if not self._strangers:
            return False
        oldest = next(iter(self._strangers))
        self._strangers.pop(oldest)()
        return True

    def _welcomed(self, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        self._strangers.pop(task, None)

    async def _welcome(self, accepted: socket.socket, address: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.connect_accepted_socket(
                self._protocol, accepted, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=_GOODBYE_S,
            )  # fmt: skip
        except (OSError, ssl.SSLError) as error:
            accepted.close()
            self._failed(address, _why(error))
            return
        except asyncio.CancelledError:
            accepted.close()
            raise
        if transport.is_closing():
            return
        shown = transport.get_extra_info("ssl_object")
        node = self._node_of(shown.getpeercert(True) if shown is not None else None)
        if node is None:
            self._strangers[protocol] = transport.abort
            return
        self._has(protocol, node, transport.abort)

    def _has(self, protocol: asyncio.Protocol, node: str, end: Callable[[], object]) -> None:
        ends = self._of_node.setdefault(node, {})
        self._nodes[protocol], ends[protocol] = node, end
        if len(ends) > OF_ONE_NODE:
            oldest = next(iter(ends))
            del self._nodes[oldest]
            self._forget(oldest, node)()

    def _forget(self, protocol: asyncio.Protocol, node: str) -> Callable[[], object]:
        """How to end the connection of the node that is no more."""
        ends = self._of_node[node]
        end = ends.pop(protocol)
        if not ends:
            del self._of_node[node]
        return end


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.lower().replace('_', ' ')}"
    with contextlib.suppress(AttributeError):
        if isinstance(error, ConnectionAbortedError) or "handshake" in str(error):
            return "TLS: the handshake took too long"
    return error.strerror or str(error) or "TLS: the client has gone"
