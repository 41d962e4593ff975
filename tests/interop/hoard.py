"""A hostile peer with a proper certificate that makes a server keep as much as it may."""

from __future__ import annotations

import contextlib
import ssl
import time

from interop.frames import ACK, PREFACE, SETTINGS, Frame, Kind, connect, data
from interop.hbone import Hbone
from support.connection import Address
from support.lab import RunningLab
from support.patience import PATIENCE

_QUIET = 2.0
_WINDOW = 65535  # of a connection at first (RFC 9113, 6.9.2)
_STREAM_WINDOW = 1 << 20
_PIECE = 16384
_MOMENT = 0.001


class Hoard:
    """Streams to an application that reads nothing, on which it sends all that its connection's window allows. It
    acknowledges the first settings, which grant large windows to streams, and no smaller ones.

    Raises OSError when the server ends the tunnel."""

    def __init__(self, lab: RunningLab, source: str, context: ssl.SSLContext, to: tuple[str, Address]) -> None:
        """From one pod to an application of another: its name, and where the application listens."""
        pod, (host, port) = to
        self._hbone = Hbone(lab, source, pod, context)
        self._authority = f"{host}:{port}"
        self._credit = _WINDOW
        self._input = bytearray()
        self._acknowledged = False
        self._granted_at = time.monotonic()
        self._streams: dict[int, int] = {}
        self._send(PREFACE + SETTINGS.encoded)

    def open(self, count: int) -> None:
        """New streams."""
        for stream in range(1, 2 * count, 2):
            self._streams[stream] = _STREAM_WINDOW
            self._send(connect(stream, self._authority).encoded)

    def send(self) -> bool:
        """A piece on each stream that may have one. False once nothing was granted for a while."""
        for stream in self._streams:
            self._listen()
            if min(self._streams[stream], self._credit) >= _PIECE:
                self._granted_at = time.monotonic()
                self._credit -= _PIECE
                self._streams[stream] -= _PIECE
                self._send(data(stream, bytes(_PIECE)).encoded)
        return time.monotonic() < self._granted_at + _QUIET

    def close(self) -> None:
        self._hbone.close()

    def _send(self, encoded: bytes) -> None:
        self._hbone.socket.settimeout(PATIENCE)
        self._hbone.socket.sendall(encoded)
        self._hbone.socket.settimeout(_MOMENT)

    def _listen(self) -> None:
        with contextlib.suppress(TimeoutError, ssl.SSLWantReadError):
            while part := self._hbone.socket.recv(1 << 16):
                self._input += part
                self._take_frames()
            raise ConnectionResetError("the server has ended the tunnel")

    def _take_frames(self) -> None:
        while len(self._input) >= 9 + (length := int.from_bytes(self._input[:3])):
            header, payload = self._input[:9], bytes(self._input[9 : 9 + length])
            del self._input[: 9 + length]
            self._take(Frame(header[3], header[4], int.from_bytes(header[5:]), payload))

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.WINDOW_UPDATE and frame.stream == 0:
            self._credit += int.from_bytes(frame.payload)
        elif frame.kind == Kind.WINDOW_UPDATE:
            self._streams[frame.stream] += int.from_bytes(frame.payload)
        elif frame.kind == Kind.SETTINGS and not frame.flags & ACK and not self._acknowledged:
            self._acknowledged = True
            self._send(Frame(Kind.SETTINGS, ACK, 0).encoded)
        elif frame.kind == Kind.PING and not frame.flags & ACK:
            self._send(Frame(Kind.PING, ACK, 0, frame.payload).encoded)
