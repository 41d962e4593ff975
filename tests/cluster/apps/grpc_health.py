"""A gRPC server that says of its health: SERVING, to whoever asks. One port, no TLS.

grpc_health.py PORT
"""

from __future__ import annotations

import socket
import struct
import sys
import threading

DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, END_HEADERS, ACK = 1, 4, 1
_SERVING = b"\x00" + struct.pack(">I", 2) + b"\x08\x01"


def literal(name: bytes, value: bytes) -> bytes:
    """A header field, neither indexed nor Huffman coded (RFC 7541, 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def serve(connection: socket.socket) -> None:
    """Until the client goes."""
    with connection, connection.makefile("rb") as file:
        file.read(24)
        connection.sendall(frame(SETTINGS, 0, 0))
        while len(head := file.read(9)) == 9:
            length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
            payload = file.read(length)
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                connection.sendall(frame(PING, ACK, 0, payload))
            elif kind in (DATA, HEADERS) and flags & END_STREAM:
                begin = b"\x88" + literal(b"content-type", b"application/grpc")
                connection.sendall(frame(HEADERS, END_HEADERS, stream, begin) + frame(DATA, 0, stream, _SERVING))
                end = literal(b"grpc-status", b"0")
                connection.sendall(frame(HEADERS, END_HEADERS | END_STREAM, stream, end))


def main(port: str) -> None:
    listener = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
