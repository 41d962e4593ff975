"""An admission webhook: refuses every object, and says by whom. HTTPS.

webhook.py PORT CERTIFICATE KEY
"""

from __future__ import annotations

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = {"uid": review["request"]["uid"], "allowed": False, "status": {"message": "the webhook was here"}}
        body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": said}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        # HTTPServer's own asks DNS for this host's full name, which takes seconds where there is no DNS.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "webhook", self.server_address[1]


def main(port: str, certificate: str, key: str) -> None:
    server = Server(("", int(port)), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
