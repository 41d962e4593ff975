"""Programs that people run: what they print, and how they end, when servers are there, dead or silent."""

from __future__ import annotations

import http.client
import os
import re
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from differential.case import case
from differential.observation import Observation, clock
from differential.setting import EVERYWHERE, PODS_ONLY
from differential.world import World
from support.kept import kept_in
from support.patience import wait_for

BOTH = (4, 6)
NAME = "dual.test"
"""What both addresses of the server are called (RFC 6761)."""


def answers_http(connection: socket.socket) -> None:
    """A server's handler: one request, one answer."""
    asked = b""
    while b"\r\n\r\n" not in asked:
        part = connection.recv(4096)
        if not part:
            return
        asked += part
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")


def ran(world: World, *argv: str, wrapped: tuple[str, ...] = (), times: int = 1) -> Observation:
    """A program in the client's pod: exit code, output, errors, time. Its addresses are the same in both labs."""
    with clock() as seconds:
        for _ in range(times):
            done = world.client.command(*wrapped, *argv)
    return {
        "exit code": done.returncode,
        "output": done.stdout,
        "errors": done.stderr,
        "time": seconds(),
    }


def drop(world: World, version: int | None = None) -> None:
    """The server's firewall drops what comes for the port, over this family or both."""
    family = {None: "", 4: "meta nfproto ipv4 ", 6: "meta nfproto ipv6 "}[version]
    world.filter(world.server.plan.netns, "input", f"{family}tcp dport {world.port} drop")


# ---- nc, curl, bash


@case(*EVERYWHERE, versions=BOTH)
def test_nc_closed_port(world: World) -> Observation:
    """`nc -z` asks whether a closed port is open."""
    return ran(world, "nc", "-z", world.target[0], str(world.port))


@case(*EVERYWHERE, versions=BOTH)
def test_nc_open_port(world: World) -> Observation:
    """`nc -z` asks whether an open port is open."""
    world.serve()
    return ran(world, "nc", "-z", world.target[0], str(world.port))


@case(*PODS_ONLY)
def test_nc_filtered_port(world: World) -> Observation:
    """`nc -z -w 1` asks whether a port is open whose SYNs are dropped."""
    drop(world)
    return ran(world, "nc", "-z", "-w", "1", world.target[0], str(world.port))


@case(*EVERYWHERE, versions=BOTH)
def test_curl(world: World) -> Observation:
    """curl fetches a page."""
    world.serve(answers_http)
    return ran(world, "curl", "-sS", "--max-time", "20", url(world, world.target[0]))


@case(*EVERYWHERE)
def test_curl_closed_port(world: World) -> Observation:
    """curl fetches from a closed port."""
    return ran_curl(world, "--max-time", "20", url(world, world.target[0]))


@case(*PODS_ONLY)
def test_curl_connect_timeout(world: World) -> Observation:
    """curl with --connect-timeout fetches from a port whose SYNs are dropped."""
    drop(world)
    return ran_curl(world, "--connect-timeout", "1", "--max-time", "4", url(world, world.target[0]))


def ran_curl(world: World, *argv: str) -> Observation:
    """Without the milliseconds in what curl says."""
    seen = dict(ran(world, "curl", "-sS", *argv))
    seen["errors"] = re.sub(r"[0-9]+ m?s(ec)?", "a while", seen["errors"])
    return seen


def url(world: World, host: str) -> str:
    return f"http://[{host}]:{world.port}/" if ":" in host else f"http://{host}:{world.port}/"


@case(*PODS_ONLY)
def test_wait_for_it(world: World) -> Observation:
    """A script dials by bash's /dev/tcp until a server is there, which starts a second later (wait-for-it.sh)."""
    started = threading.Timer(1.0, lambda: world.serve(answers_http))
    started.start()
    script = """
        for number in 1 2 3 4 5 6 7 8 9 10; do
            if (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; then break; fi
            sleep 0.3
        done
        echo "$number"
    """
    done = world.client.command("bash", "-c", textwrap.dedent(script), "bash", world.target[0], str(world.port))
    started.join()
    return {"tries": "more than one" if int(done.stdout) > 1 else "one"}


# ---- both families


@case(*PODS_ONLY)
def test_curl_second_family(world: World) -> Observation:
    """curl fetches from a name with both families; nobody listens at its IPv6 address."""
    world.serve(answers_http)
    named = world.named({NAME: [world.server.address(6), world.server.address(4)]})
    return ran(world, "curl", "-sS", "--max-time", "20", url(world, NAME), wrapped=named)


@case(*PODS_ONLY)
def test_curl_silent_family(world: World) -> Observation:
    """curl fetches from a name with both families; SYNs to its IPv6 address are dropped."""
    drop(world, 6)
    world.serve(answers_http)
    named = world.named({NAME: [world.server.address(6), world.server.address(4)]})
    return ran(world, "curl", "-sS", "--max-time", "5", url(world, NAME), wrapped=named)


EYEBALLS = """
import asyncio, sys

async def main():
    reader, writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]), happy_eyeballs_delay=0.25)
    print(writer.get_extra_info("peername")[0], writer.get_extra_info("socket").family.name)
    writer.write(b"a line")
    print(await reader.readexactly(6))
    writer.close()

asyncio.run(asyncio.wait_for(main(), 10))
"""


@case(*PODS_ONLY)
def test_asyncio_second_family(world: World) -> Observation:
    """asyncio dials a name with both families (happy_eyeballs_delay); nobody listens at its IPv6 address."""
    world.serve()
    named = world.named({NAME: [world.server.address(6), world.server.address(4)]})
    return ran(world, sys.executable, "-c", EYEBALLS, NAME, str(world.port), wrapped=named)


@case(*PODS_ONLY)
def test_asyncio_silent_family(world: World) -> Observation:
    """asyncio dials a name with both families (happy_eyeballs_delay); SYNs to its IPv6 address are dropped."""
    drop(world, 6)
    world.serve()
    named = world.named({NAME: [world.server.address(6), world.server.address(4)]})
    return ran(world, sys.executable, "-c", EYEBALLS, NAME, str(world.port), wrapped=named)


GO_DIAL = """
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp", net.JoinHostPort(os.Args[1], os.Args[2]))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Println(conn.RemoteAddr())
	fmt.Fprint(conn, "a line")
	answer := make([]byte, 6)
	_, err = io.ReadFull(conn, answer)
	fmt.Println(string(answer), err)
}
"""


def go_dial() -> str:
    """The program, built when it is not there."""
    with kept_in("differential-go") as directory:
        source, program = directory / "dial.go", directory / "dial"
        if not program.exists() or not source.exists() or source.read_text() != GO_DIAL:
            source.write_text(GO_DIAL)
            build(source, program)
        return str(program)


def build(source: Path, program: Path) -> None:
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        ["go", "build", "-o", str(program), str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
        cwd=source.parent,
    )
    if done.returncode:
        pytest.fail(f"go build: {done.stderr}")


@case(*PODS_ONLY)
def test_go_second_family(world: World) -> Observation:
    """A Go program dials a name with both families; nobody listens at its IPv6 address."""
    world.serve()
    named = world.named({NAME: [world.server.address(6), world.server.address(4)]})
    return ran(world, go_dial(), NAME, str(world.port), wrapped=named)


@case(*PODS_ONLY)
def test_go_closed_port(world: World) -> Observation:
    """A Go program dials a closed port."""
    seen = dict(ran(world, go_dial(), world.target[0], str(world.port)))
    seen["output"] = seen["output"].partition("dial tcp")[2]
    return seen


# ---- databases


def answers_postgres(connection: socket.socket) -> None:
    """A server's handler: as much of PostgreSQL's protocol 3 as `select 1` needs."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!I", 4 + len(body)) + body

    def read(count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = connection.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    read(struct.unpack("!I", read(4))[0] - 4)
    ready = message(b"Z", b"I")
    connection.sendall(message(b"R", struct.pack("!I", 0)) + message(b"S", b"server_version\x0015.0\0") + ready)
    while (kind := read(1)) != b"X":
        read(struct.unpack("!I", read(4))[0] - 4)
        if kind == b"Q":
            column = b"one\0" + struct.pack("!IHIHIH", 0, 0, 23, 4, 0xFFFFFFFF, 0)
            row = struct.pack("!HI", 1, 1) + b"1"
            rows = message(b"T", struct.pack("!H", 1) + column) + message(b"D", row)
            connection.sendall(rows + message(b"C", b"SELECT 1\0") + ready)


def psql(world: World, ports: str, more: str = "") -> Observation:
    hosts = ",".join([world.server.address(4)] * len(ports.split(",")))
    where = f"host={hosts} port={ports} user=u dbname=d sslmode=disable gssencmode=disable {more}"
    return ran(world, "psql", "-X", "-A", "-t", "-c", "select 1", where)


@case(*PODS_ONLY)
def test_libpq_second_host(world: World) -> Observation:
    """psql (libpq) is given two hosts; nobody listens at the first."""
    world.serve(answers_postgres, port=world.more_ports[0])
    return psql(world, f"{world.port},{world.more_ports[0]}")


@case(*PODS_ONLY)
def test_libpq_silent_host(world: World) -> Observation:
    """psql (libpq) with connect_timeout is given two hosts; SYNs to the first are dropped."""
    drop(world)
    world.serve(answers_postgres, port=world.more_ports[0])
    return psql(world, f"{world.port},{world.more_ports[0]}", "connect_timeout=2")


@case(*PODS_ONLY)
def test_libpq_closed_port(world: World) -> Observation:
    """psql (libpq) dials a closed port."""
    return psql(world, str(world.port))


@case(*PODS_ONLY)
def test_redis_closed_port(world: World) -> Observation:
    """redis-cli dials a closed port."""
    return ran(world, "redis-cli", "-h", world.target[0], "-p", str(world.port), "PING")


@case(*PODS_ONLY)
def test_redis(world: World) -> Observation:
    """redis-cli asks a server."""

    def pong(connection: socket.socket) -> None:
        while connection.recv(4096):
            connection.sendall(b"+PONG\r\n")

    world.serve(pong)
    return ran(world, "redis-cli", "-h", world.target[0], "-p", str(world.port), "PING")


def mariadb(world: World) -> Observation:
    return ran(world, "mariadb", "--no-defaults", "--skip-ssl", "-h", world.target[0], "-P", str(world.port), "-e", "")


@case(*PODS_ONLY)
def test_mariadb_closed_port(world: World) -> Observation:
    """mariadb dials a closed port."""
    return mariadb(world)


@case(*PODS_ONLY)
def test_mariadb_refused_by_the_server(world: World) -> Observation:
    """mariadb dials a server that speaks first: it says that it has too many connections, and closes."""

    def too_many(connection: socket.socket) -> None:
        body = b"\xff" + struct.pack("<H", 1040) + b"#08004Too many connections"
        connection.sendall(struct.pack("<I", len(body)) + body)

    world.serve(too_many)
    return mariadb(world)


# ---- ssh


def ssh(world: World, *options: str) -> Observation:
    plain = (
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    )
    return ran(world, "ssh", *plain, *options, "-p", str(world.port), f"nobody@{world.target[0]}", "true")


@case(*PODS_ONLY, versions=BOTH)
def test_ssh_closed_port(world: World) -> Observation:
    """ssh dials a closed port."""
    return ssh(world)


@case(*PODS_ONLY)
def test_ssh_silent_port(world: World) -> Observation:
    """ssh with ConnectTimeout dials a port whose SYNs are dropped."""
    drop(world)
    return ssh(world, "ConnectTimeout=1")


@case(*PODS_ONLY)
def test_ssh_server_hangs_up(world: World) -> Observation:
    """ssh dials a server that hangs up as soon as it has read the client's hello."""
    world.serve(lambda connection: connection.recv(100))
    return ssh(world)


# ---- balancers


def statuses(world: World, port: int) -> list[int]:
    """Of 20 requests to a program in the client's pod."""

    def ask() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status
        finally:
            connection.close()

    return [world.client.run(ask) for _ in range(20)]


@case(*PODS_ONLY)
def test_haproxy_checks(world: World) -> Observation:
    """haproxy checks two servers, one of which is dead, and is asked for 20 pages."""
    world.serve(answers_http, port=world.more_ports[0])
    front, stats = world.more_ports[1], world.directory / "stats"
    address = world.server.address(4)
    config = world.directory / "haproxy.cfg"
    config.write_text(
        textwrap.dedent(f"""
        global
            stats socket {stats}
        defaults
            mode http
            timeout connect 2s
            timeout client 10s
            timeout server 10s
        frontend front
            bind 127.0.0.1:{front}
            default_backend back
        backend back
            balance roundrobin
            default-server check inter 200ms fall 1 rise 1
            server alive {address}:{world.more_ports[0]}
            server dead {address}:{world.port}
        """)
    )
    world.program(world.client, "haproxy", "-db", "-f", str(config), ready=front)

    def servers() -> dict[str, str]:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(stats))
            asked.sendall(b"show stat\n")
            text = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
        rows = [line.split(",") for line in text.splitlines() if line.startswith("back,")]
        # Column 17 is the status, 36 that of the last check.
        return {row[1]: row[17] for row in rows if row[1] != "BACKEND" and row[36] not in ("", "INI")}

    wait_for(lambda: len(servers()) == 2, "haproxy has checked both")
    threading.Event().wait(0.5)
    return {"servers": servers(), "answers": sorted(set(statuses(world, front)))}


@case(*PODS_ONLY)
def test_nginx_upstreams(world: World) -> Observation:
    """nginx has two upstreams, one of which is dead, and is asked for 20 pages."""
    world.serve(answers_http, port=world.more_ports[0])
    front, address = world.more_ports[1], world.server.address(4)
    config = world.directory / "nginx.conf"
    config.write_text(
        textwrap.dedent(f"""
        daemon off;
        master_process off;
        user root;
        pid {world.directory}/nginx.pid;
        error_log {world.directory}/error.log;
        events {{ }}
        http {{
            access_log off;
            client_body_temp_path {world.directory}/body;
            proxy_temp_path {world.directory}/proxy;
            fastcgi_temp_path {world.directory}/fastcgi;
            uwsgi_temp_path {world.directory}/uwsgi;
            scgi_temp_path {world.directory}/scgi;
            upstream both {{
                server {address}:{world.port} max_fails=0;
                server {address}:{world.more_ports[0]} max_fails=0;
            }}
            server {{
                listen 127.0.0.1:{front};
                location / {{ proxy_pass http://both; }}
            }}
        }}
        """)
    )
    world.program(world.client, "nginx", "-p", str(world.directory), "-c", str(config), ready=front)
    found = statuses(world, front)
    log = (world.directory / "error.log").read_text()
    return {"answers": sorted(set(found)), "refused is in the log": "Connection refused" in log}
