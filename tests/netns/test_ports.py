"""The ports that a server sees, and those that are left to the applications."""

from __future__ import annotations

import contextlib
import errno
import itertools
import resource
import socket
import struct
from collections.abc import Iterator

import pytest

from support.connection import Address, echoes, family_of, receive_exactly, reset, silent
from support.lab import HBONE_PORT, RunningLab
from support.patience import PATIENCE, wait_for
from support.programs import Programs
from support.tcp_table import ESTABLISHED, ports_in_use, tcp_table

IP_VERSIONS = (4, 6)
FIRST_OF_OURS = 61000
FIRST_OF_APPLICATIONS, LAST_OF_APPLICATIONS = 1024, 32767
"""Below the clients' ip_local_port_range, as it is by default."""
LISTENERS = 500

TUNNELS = pytest.mark.parametrize(
    ("client", "server"), [("shipper", "pipeline"), ("shipper", "siem")], ids=["two-nodes", "one-node"]
)
_ports = itertools.count(20000)


def dial_from(programs: Programs, pod: str, port: int, address: Address) -> socket.socket:
    """A connection from that port of the pod's own address."""

    def connect() -> socket.socket:
        client = socket.socket(family_of(address[0]))
        try:
            client.settimeout(PATIENCE)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((programs.at(pod), port))
            client.connect(address)
        except BaseException:
            client.close()
            raise
        return client

    client = programs.lab.run(pod, connect)
    programs.at_end(client.close)
    return client


@pytest.mark.fast
@pytest.mark.both_backends
@TUNNELS
def test_server_sees_the_clients_own_address_and_port(
    lab: RunningLab, programs: Programs, client: str, server: str
) -> None:
    listener = programs.serve(server)
    clients = [programs.dial(client, listener.address) for _ in range(20)]
    assert all(echoes(one) for one in clients)
    assert set(listener.peers) == {one.getsockname()[:2] for one in clients}
    assert lab.outbound(clients[0])["mtls"]


@pytest.mark.parametrize(
    ("client", "server"), [("shipper", "intruder"), ("guest", "pipeline")], ids=["outbound", "inbound"]
)
def test_of_plaintext_a_server_sees_the_clients_address_and_port_or_a_high_one(
    programs: Programs, client: str, server: str
) -> None:
    listener = programs.serve(server)
    dialled = programs.dial(client, listener.address)
    assert echoes(dialled)
    address, port = listener.peers[0]
    own = dialled.getsockname()
    assert address == own[0]
    assert port == own[1] or port >= FIRST_OF_OURS


@pytest.mark.both_backends
@TUNNELS
def test_privileged_port_stays_one(programs: Programs, client: str, server: str) -> None:
    """As of NFS, rsh or a rule of pg_hba.conf: who comes from such a port is trusted."""

    def trusting(connection: socket.socket) -> None:
        connection.sendall(b"yes" if connection.getpeername()[1] < 1024 else b"no!")

    listener = programs.serve(server, trusting)
    for port in (1023, 600, 1):
        assert receive_exactly(dial_from(programs, client, port, listener.address), 3) == b"yes"
    assert [port for _, port in listener.peers] == [1023, 600, 1]


@TUNNELS
def test_port_on_which_the_server_listens_is_a_clients_as_well(programs: Programs, client: str, server: str) -> None:
    listener = programs.serve(server, host="::" if programs.version == 6 else "0.0.0.0")
    port = listener.address[1]
    dialled = dial_from(programs, client, port, (programs.at(server), port))
    assert echoes(dialled)
    assert listener.peers == [(programs.at(client), port)]


def test_two_pods_dial_each_other_at_once_from_the_ports_of_their_servers(programs: Programs) -> None:
    here, there = "shipper", "pipeline"
    servers = {pod: programs.serve(pod) for pod in (here, there)}
    ports = {pod: next(_ports) for pod in (here, there)}
    others = {here: there, there: here}
    clients = {pod: dial_from(programs, pod, ports[pod], servers[other].address) for pod, other in others.items()}
    more = {
        pod: dial_from(programs, pod, servers[other].address[1], servers[other].address)
        for pod, other in others.items()
    }
    assert all(echoes(client) for client in [*clients.values(), *more.values()])
    for pod, other in others.items():
        assert {port for _, port in servers[other].peers} == {ports[pod], servers[other].address[1]}


@contextlib.contextmanager
def closing(programs: Programs, pod: str, who_ends: str) -> Iterator[Address]:
    """A server whose connections are ended by the server, by the client, or by a reset of the client's."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(receive_exactly(connection, 4) + struct.pack("!H", connection.getpeername()[1]))
        if who_ends == "server":
            connection.close()

    yield programs.serve(pod, answer).address


@TUNNELS
@pytest.mark.parametrize("who_ends", ["server", "client-resets"])
def test_client_connects_again_at_once_from_its_port(
    programs: Programs, client: str, server: str, who_ends: str
) -> None:
    """Without nodeseal a client can, unless its own end has closed first in order."""
    port = next(_ports)
    with closing(programs, server, who_ends) as address:
        for number in range(200):
            one = dial_from(programs, client, port, address)
            one.sendall(struct.pack("!I", number))
            assert receive_exactly(one, 6) == struct.pack("!IH", number, port)
            if who_ends == "server":
                assert one.recv(1) == b""
                one.close()
            else:
                reset(one)


def test_nothing_of_a_clients_former_connection_is_lost(programs: Programs) -> None:
    """The server has not taken all of it when the client comes again from the same port: it gets another one."""
    sent, port = bytes(600_000), next(_ports)
    listener = programs.serve("pipeline", silent)
    client = dial_from(programs, "shipper", port, listener.address)
    former = listener.connection()
    former.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.sendall(sent)
    client.close()
    wait_for(lambda: port not in programs.lab.run("shipper", ports_in_use), "the core has taken all from the client")
    again = dial_from(programs, "shipper", port, listener.address)
    again.sendall(b"again")
    assert receive_exactly(listener.connection(1), 5) == b"again"
    assert listener.peers[0][1] == port
    assert listener.peers[1][1] >= FIRST_OF_OURS
    assert receive_exactly(former, len(sent)) == sent
    assert former.recv(1) == b""


def test_clients_that_may_use_every_port_lose_no_connection(lab: RunningLab, programs: Programs) -> None:
    former = lab.sysctl("shipper", "ipv4/ip_local_port_range")
    lab.sysctl("shipper", "ipv4/ip_local_port_range", "1024 65535")
    programs.at_end(lambda: lab.sysctl("shipper", "ipv4/ip_local_port_range", former))
    with Crowd(programs, "shipper", "pipeline") as crowd:
        for _ in range(2000):
            crowd.join()
        assert crowd.seen() == crowd.dialled()


@pytest.mark.parametrize("pod", ["shipper", "pipeline"], ids=["where-clients-are", "where-the-server-is"])
def test_applications_can_listen_where_clients_have_no_ports(lab: RunningLab, programs: Programs, pod: str) -> None:
    """Also such as do not ask for SO_REUSEADDR, while 5,000 connections are open."""
    with Crowd(programs, "shipper", "pipeline") as crowd:
        for _ in range(5000):
            crowd.join()
        step = (LAST_OF_APPLICATIONS - FIRST_OF_APPLICATIONS) // (LISTENERS + 1)
        ports = [port for port in range(FIRST_OF_APPLICATIONS, LAST_OF_APPLICATIONS, step) if port != crowd.address[1]]
        assert unavailable(lab, programs, pod, ports[:LISTENERS]) == []


def test_application_that_asks_for_it_can_listen_on_any_clients_port(lab: RunningLab, programs: Programs) -> None:
    """SO_REUSEADDR, which servers ask for as a rule."""
    with Crowd(programs, "shipper", "pipeline") as crowd:
        for _ in range(LISTENERS):
            crowd.join()
        ports = [port for _, port in crowd.dialled()]
        assert unavailable(lab, programs, "pipeline", ports, reuse=1) == []


def test_core_takes_no_port_of_clients_by_its_own_choice(lab: RunningLab, programs: Programs) -> None:
    """Tunnels, plaintext to an endpoint, and for a client in plaintext."""
    listeners = [programs.serve(pod) for pod in ("pipeline", "intruder")]
    clients = [programs.dial("shipper", listener.address) for listener in listeners for _ in range(20)]
    clients += [programs.dial("guest", listeners[0].address) for _ in range(20)]
    assert all(echoes(client) for client in clients)
    applications = {client.getsockname()[:2] for client in clients}
    servers = {listener.address for listener in listeners} | {
        (programs.at(pod), HBONE_PORT) for pod in ("shipper", "pipeline")
    }
    for pod in ("shipper", "pipeline"):
        for one in lab.run(pod, tcp_table):
            if one.state == ESTABLISHED and one.local not in applications | servers and one.remote in servers:
                assert one.local[1] >= FIRST_OF_OURS, one


class Crowd:
    """Connections of one pod to another, without a thread for each. They stay until the end."""

    def __init__(self, programs: Programs, client: str, server: str) -> None:
        self._programs, self._client = programs, client
        host = programs.at(server)

        def listen() -> socket.socket:
            listener = socket.create_server((host, 0), family=socket.AddressFamily(family_of(host)), backlog=16)
            listener.settimeout(PATIENCE)
            return listener

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20000)), hard))
        programs.at_end(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))
        self._listener = programs.lab.run(server, listen)
        self.address: Address = self._listener.getsockname()[:2]
        self._clients: list[socket.socket] = []
        self._servers: list[socket.socket] = []

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._clients:
            reset(one)  # no port stays taken by what has ended
        for one in [*self._servers, self._listener]:
            one.close()

    def join(self) -> None:
        """One more, once the server has accepted it."""

        def connect() -> socket.socket:
            client = socket.socket(family_of(self.address[0]))
            client.settimeout(PATIENCE)
            client.connect(self.address)
            return client

        self._clients.append(self._programs.lab.run(self._client, connect))
        self._servers.append(self._listener.accept()[0])

    def dialled(self) -> list[Address]:
        """The clients' ends, as they have them."""
        return [one.getsockname()[:2] for one in self._clients]

    def seen(self) -> list[Address]:
        """The clients' ends, as the server sees them."""
        return [one.getpeername()[:2] for one in self._servers]


def unavailable(lab: RunningLab, programs: Programs, pod: str, ports: list[int], *, reuse: int = 0) -> list[int]:
    """The ports on which an application in the pod cannot listen, each by itself; `reuse`: SO_REUSEADDR."""
    family = socket.AF_INET if programs.version == 4 else socket.AF_INET6

    def listens(port: int) -> bool:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            try:
                listener.bind(("", port))
                listener.listen()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return False
            return True

    return lab.run(pod, lambda: [port for port in ports if not listens(port)])
