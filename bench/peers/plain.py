"""The two floors: no proxy at all, and proxies that only copy."""

from __future__ import annotations

from bench.bed import CLIENT, SERVER, Bed
from bench.peers.peer import ENTRY_PORT, TUNNEL_PORT, Peer, Started


class Direct(Peer):
    """The application talks to the other one, in plaintext."""

    name = "direct"
    encrypts = False
    threads = 0

    def version(self) -> str:
        return "no proxy"

    def start(self, bed: Bed) -> Started:
        return Started(bed.app)


class Relay(Peer):
    """bench/relay.c on both sides, in plaintext."""

    name = "relay"
    encrypts = False
    shares_descriptors = True

    def version(self) -> str:
        return "bench/relay.c, 256 KiB buffers"

    def start(self, bed: Bed) -> Started:
        entry, tunnel = f"127.0.0.1:{ENTRY_PORT}", f"{bed.address(SERVER)}:{TUNNEL_PORT}"
        relay, threads = str(bed.programs.relay), str(self.threads)
        watched = (
            bed.start(CLIENT, [relay, entry, tunnel, threads], "relay"),
            bed.start(SERVER, [relay, tunnel, bed.app, threads], "relay"),
        )
        return Started(entry, proxies=tuple(record.pid for record in watched if record.pid), watched=watched)
