"""What a program of a test does with one TCP connection; and how addresses are written."""

from __future__ import annotations

import socket
import struct

Address = tuple[str, int]
PAYLOAD = b"4111 1111 1111 1111"


def endpoint(address: Address) -> str:
    """ "10.0.0.1:80" or "[fd00::1]:80", as the agents write it."""
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def family_of(host: str) -> int:
    """The address family of sockets that use this address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def echo(connection: socket.socket) -> None:
    """A server's handler: sends back what it gets, ends when the client does."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def silent(connection: socket.socket) -> None:
    """A server's handler that reads nothing and says nothing: the test works with Server.accepted."""


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """`count` bytes. Raises EOFError when the other side ends before."""
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(count - len(data), 1 << 20))
        if not part:
            raise EOFError(f"the connection ended after {len(data)} of {count} bytes")
        data += part
    return bytes(data)


def echoes(connection: socket.socket, data: bytes = PAYLOAD) -> bool:
    """Whether the other side sends back exactly what is sent."""
    connection.sendall(data)
    return receive_exactly(connection, len(data)) == data


def reset(connection: socket.socket) -> None:
    """Ends a connection with an RST: close() with a linger time of zero (socket(7))."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
