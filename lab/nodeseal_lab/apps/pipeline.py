"""Takes log lines over HTTP and forwards them to the siem over HTTP; also echoes lines over TCP. It stands for a log
pipeline.

pipeline.py [--address ::] --port 8080 --lines-port 7000 --siem ADDRESS:PORT --access-log FILE

Each connection from a client has one connection of its own to the siem, kept open for as long as the client keeps its
own.
"""

from __future__ import annotations

import argparse
import socket
import threading
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer, ThreadingTCPServer
from typing import TextIO


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, port: int, siem: str, access_log: TextIO) -> None:
        self.siem = siem
        self.access_log = access_log
        self.address_family = family_of(address)
        super().__init__((address, port), HttpHandler)

    def server_bind(self) -> None:
        # HTTPServer's own asks DNS for this host's full name, which takes seconds where there is no DNS.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "pipeline", self.server_address[1]


class HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpServer

    def setup(self) -> None:
        super().setup()
        self.siem = HTTPConnection(self.server.siem, timeout=20)

    def finish(self) -> None:
        self.siem.close()
        super().finish()

    def do_GET(self) -> None:
        self.answer(200, "pipeline: ready\n")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.siem.request("POST", "/ingest", body, {"Content-Type": "text/plain"})
            response = self.siem.getresponse()
            self.answer(response.status, response.read().decode(errors="replace"))
        except (OSError, HTTPException) as error:
            self.siem.close()
            self.answer(502, f"pipeline: cannot forward to siem: {error}\n")

    def answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log_access(self.server.access_log, self.client_address, format % args)


class LineServer(ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: str, port: int, access_log: TextIO) -> None:
        self.access_log = access_log
        self.address_family = family_of(address)
        super().__init__((address, port), LineHandler)


class LineHandler(StreamRequestHandler):
    disable_nagle_algorithm = True
    server: LineServer

    def handle(self) -> None:
        log_access(self.server.access_log, self.client_address, "lines: opened")
        try:
            for line in self.rfile:
                self.wfile.write(line)
            end = "closed by the client"
        except OSError as error:
            end = f"broken: {error}"
        log_access(self.server.access_log, self.client_address, f"lines: {end}")


def log_access(log: TextIO, client: tuple[str, int], text: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    # An IPv6 socket takes IPv4 as well, from ::ffff:10.0.0.1.
    host, port = client[0].removeprefix("::ffff:"), client[1]
    source = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    log.write(f"{now} {source} {text}\n")


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--lines-port", type=int, required=True)
    parser.add_argument("--siem", required=True)
    parser.add_argument("--access-log", type=Path, required=True)
    args = parser.parse_args()
    with args.access_log.open("a", buffering=1) as access_log:
        lines = LineServer(args.address, args.lines_port, access_log)
        threading.Thread(target=lines.serve_forever, daemon=True).start()
        HttpServer(args.address, args.port, args.siem, access_log).serve_forever()


if __name__ == "__main__":
    main()
