"""Answers every connection with one line, "NAME:PORT CLIENT", on several ports of all addresses.

named_server.py NAME PORT...
"""

from __future__ import annotations

import socket
import sys
import threading


def serve(listener: socket.socket, name: str, port: int) -> None:
    """For ever."""
    while True:
        connection, client = listener.accept()
        with connection:
            try:
                connection.sendall(f"{name}:{port} {client[0].removeprefix('::ffff:')}\n".encode())
            except OSError:
                # It has gone already.
                continue


def main(name: str, *ports: str) -> None:
    for port in map(int, ports):
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        threading.Thread(target=serve, args=(listener, name, port)).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
