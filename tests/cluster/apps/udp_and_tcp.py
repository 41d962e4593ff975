"""Answers datagrams and connections on one port, as a DNS server does: each with "udp" or "tcp".

udp_and_tcp.py PORT
"""

from __future__ import annotations

import socket
import sys
import threading


def datagrams(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("", port))
        while True:
            _, client = own.recvfrom(512)
            own.sendto(b"udp", client)


def main(port: str) -> None:
    threading.Thread(target=datagrams, args=(int(port),)).start()
    listener = socket.create_server(("", int(port)), backlog=128)
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"udp_and_tcp:tcp\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
