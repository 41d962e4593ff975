"""The TCP sockets of a network namespace, as /proc/net lists them. To be read by a thread that is inside."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

ESTABLISHED, SYN_RECV, TIME_WAIT, LISTEN = 1, 3, 6, 10  # include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One line. An IPv4 address stands as such, also where the socket is an IPv6 one."""

    local: tuple[str, int]
    remote: tuple[str, int]
    state: int


def tcp_table() -> list[TcpSocket]:
    """The calling thread's namespace's, of both families."""
    found = []
    for name in ("tcp", "tcp6"):
        # Not /proc/net: that is the namespace of the process's main thread.
        path = Path("/proc/thread-self/net", name)
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            columns = line.split()
            found.append(TcpSocket(_address(columns[1]), _address(columns[2]), int(columns[3], 16)))
    return found


def ports_in_use() -> set[int]:
    """The local ports from which the same connection cannot be made again yet: of all sockets but those in TIME_WAIT.
    A socket that its application has closed is among them until the last acknowledgement arrives."""
    return {one.local[1] for one in tcp_table() if one.state != TIME_WAIT}


def _address(text: str) -> tuple[str, int]:
    """ "0100007F:1F90": words of 32 bits as the machine has them (tcp4_seq_show, tcp6_seq_show)."""
    host, _, port = text.partition(":")
    words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 4:
        return socket.inet_ntoa(packed), int(port, 16)
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address), int(port, 16)
