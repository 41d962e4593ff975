"""Stores log lines that arrive over HTTP, and keeps an access log. It stands for a security event store.

siem.py [--address ::] --port 9000 --access-log FILE --store FILE
"""

from __future__ import annotations

import argparse
import socket
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer


class Server(ThreadingHTTPServer):
    """The shared state of all connections: two files, written one line at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, port: int, access_log: Path, store: Path) -> None:
        self.access_log = access_log.open("a", buffering=1)
        self.store = store.open("a", buffering=1)
        self.lines = 0
        self.lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks DNS for this host's full name, which takes seconds where there is no DNS.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "siem", self.server_address[1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        with self.server.lock:
            lines = self.server.lines
        self.answer(200, f"siem: lines stored: {lines}\n")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            for line in body.decode(errors="replace").splitlines():
                self.server.store.write(line + "\n")
                self.server.lines += 1
            lines = self.server.lines
        self.answer(200, f"siem: lines stored: {lines}\n")

    def answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        # An IPv6 socket takes IPv4 as well, from ::ffff:10.0.0.1.
        host, port = self.client_address[0].removeprefix("::ffff:"), self.client_address[1]
        source = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.server.access_log.write(f"{now} {source} {format % args}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--access-log", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    args = parser.parse_args()
    Server(args.address, args.port, args.access_log, args.store).serve_forever()


if __name__ == "__main__":
    main()
