"""Very many connections, for a pod; run as a program of its own, so that each has a processor's time to itself:

    storm.py serve ADDRESS PORT...              echoes one byte of each connection, and waits for its end
    storm.py dial ADDRESS COUNT CPU PORT...     COUNT connections, one after the other: dial, send at once, read, close
    storm.py abandon ADDRESS COUNT PORT         COUNT connections that are given up while they wait for an answer

The last two print what became of them: {"ok": 4999, "ECONNRESET": 1}.
"""

from __future__ import annotations

import collections
import errno
import json
import os
import select
import socket
import sys

LIMIT = 30.0
ABANDON_AT_ONCE = 200
"""So many wait at the same time."""


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(address: str, *ports: str) -> None:
    epoll = select.epoll()
    listeners = {}
    for port in ports:
        listener = socket.socket(family_of(address))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, int(port)))
        listener.listen(4096)
        listener.setblocking(False)
        listeners[listener.fileno()] = listener
        epoll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for number, _ in epoll.poll():
            if number in listeners:
                try:
                    accepted, _ = listeners[number].accept()
                except OSError:
                    continue
                connections[accepted.fileno()] = accepted
                epoll.register(accepted, select.EPOLLIN)
                continue
            connection = connections[number]
            try:
                data = connection.recv(1)
                if data:
                    connection.send(data)
                    continue
            except OSError:
                pass
            epoll.unregister(number)
            del connections[number]
            connection.close()


def dial(address: str, count: str, cpu: str, *ports: str) -> None:
    os.sched_setaffinity(0, {int(cpu)})
    seen: collections.Counter[str] = collections.Counter()
    for number in range(int(count)):
        with socket.socket(family_of(address)) as client:
            client.settimeout(LIMIT)
            try:
                client.connect((address, int(ports[number % len(ports)])))
                client.send(b"x")
                seen["ok" if client.recv(1) == b"x" else "ended"] += 1
            except OSError as error:
                seen[errno.errorcode.get(error.errno or 0, "timed out")] += 1
    print(json.dumps(seen))


def abandon(address: str, count: str, port: str) -> None:
    seen: collections.Counter[str] = collections.Counter()
    waiting: collections.deque[socket.socket] = collections.deque()
    for _ in range(int(count)):
        client = socket.socket(family_of(address))
        client.setblocking(False)
        seen[errno.errorcode.get(client.connect_ex((address, int(port))), "ok")] += 1
        waiting.append(client)
        if len(waiting) >= ABANDON_AT_ONCE:
            waiting.popleft().close()
    for client in waiting:
        client.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "serve":
        serve(*arguments)
    elif what == "dial":
        dial(*arguments)
    else:
        abandon(*arguments)
