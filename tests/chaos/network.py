"""The two programs that a chaos run puts between and beside a lab's nodes: the bad link and the watch on it."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from chaos.errors import ChaosError
from chaos.impairment import Impairment
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.topology import UPLINK
from support.control import Remote, RemoteError

TESTS = Path(__file__).resolve().parents[1]
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from chaos.{} import main; main(*sys.argv[1:])"
_READY_SECONDS = 20.0
_SIOCETHTOOL = 0x8946
# linux/ethtool.h: checksums and large segments are made in software, so that a frame on the cable is as it would be on
# a real one. (What a packet socket would otherwise read from a veth has neither.)
_ETHTOOL_OFF = {"scatter-gather": 0x19, "segmentation": 0x1F, "generic segmentation": 0x24, "checksums": 0x17}


class Program:
    """One that runs in the lab's fabric, until close() or `lab down`."""

    def __init__(self, lab: Lab, name: str, *arguments: str) -> None:
        self._lab = lab
        self._log = lab.directory / f"{name}.log"
        control = lab.directory / f"{name}.sock"
        argv = [sys.executable, "-c", _START.format(name), str(TESTS), str(control), *arguments]
        self.record = lab.processes.start(f"chaos {name}", argv, netns=lab.plan.fabric, output=self._log)
        self._remote = Remote(control)
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            with contextlib.suppress(OSError):
                self._remote.connect()
                return
            if not self.record.alive or time.monotonic() > deadline:
                raise ChaosError(f"the {name} does not start: {self.last_words()}")
            time.sleep(0.02)

    def ask(self, op: str, **arguments: Any) -> Any:
        """Raises ChaosError."""
        try:
            return self._remote.ask(op, **arguments)
        except RemoteError as error:
            raise ChaosError(f"{error}: {self.last_words()}") from error

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self._log.read_text().strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """Ends it."""
        self._remote.close()
        self._lab.processes.end([self.record])


class BadLink(Program):
    """All frames between the nodes go through it, for the rest of the lab's life."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self._plan = lab.plan
        for node in lab.plan.nodes:
            run_in(node.netns, _plain_frames)
        super().__init__(lab, "link", str(seed), *(node.name for node in lab.plan.nodes))
        self.impairment = Impairment()

    def set(self, impairment: Impairment) -> None:
        """From the next frame on."""
        self.ask("set", **impairment.to_json())
        self.impairment = impairment

    def stats(self) -> dict[str, float]:
        """See chaos.link."""
        stats: dict[str, float] = self.ask("stats")
        return stats

    def pull(self, node: str) -> None:
        """Pulls the node's cable: its uplink loses the carrier."""
        self._set_port(node, "down")

    def plug(self, node: str) -> None:
        """Plugs the node's cable in again."""
        self._set_port(node, "up")

    def _set_port(self, node: str, state: str) -> None:
        from pyroute2 import IPRoute

        def change() -> None:
            with IPRoute() as links:
                links.link("set", index=links.link_lookup(ifname=node)[0], state=state)

        run_in(self._plan.fabric, change)


class Watch(Program):
    """Sees every frame on every node's uplink, from now on."""

    def __init__(self, lab: Lab, secret: bytes, open_marker: bytes) -> None:
        namespaces = [node.netns for node in lab.plan.nodes]
        super().__init__(lab, "sniffer", secret.hex(), open_marker.hex(), *namespaces)

    def stats(self) -> dict[str, int]:
        """See chaos.sniffer."""
        stats: dict[str, int] = self.ask("stats")
        return stats

    def sightings(self) -> list[dict[str, Any]]:
        """Of the secret marker, the first of them."""
        sightings: list[dict[str, Any]] = self.ask("sightings")
        return sightings


def _plain_frames() -> None:
    """Of this namespace's uplink."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in _ETHTOOL_OFF.values():
            value = array.array("B", struct.pack("=II", command, 0))
            address, _ = value.buffer_info()
            request = struct.pack("=16sQ16x", UPLINK.encode(), address)
            try:
                fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
            except OSError as error:
                raise ChaosError(f"cannot turn offloads of {UPLINK} off: {error.strerror}") from error
