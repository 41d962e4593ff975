"""The main thread's loop: control connections that are accepted, asked on, and told events on.

Only root and the core's own user may connect.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import time
from typing import Any

from nodeseal.contracts import core as contract
from nodeseal.linux import control_socket
from nodeseal.splice.control_server import ControlServer, Session

log = logging.getLogger("nodeseal.core")

_PEER_TIMEOUT_S = 10.0
_CHECK_S = 1.0
_ACCEPT_PAUSE_S = 0.2  # when no descriptor can be had


def serve(server: ControlServer, listener: socket.socket, wake: socket.socket) -> None:
    """Serves requests until the op "stop", until anything arrives on `wake` (a signal), or until a retired core has
    finished."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        sessions: dict[socket.socket, Session] = {}

        def drop(peer: socket.socket) -> None:
            server.events.remove(peer)
            selector.unregister(peer)
            del sessions[peer]
            peer.close()

        try:
            look_at = 0.0
            while not server.stopping:
                keeping = any(session.connections is not None for session in sessions.values())
                due = _CHECK_S if server.retired or keeping else None
                ready_keys = selector.select(server.events.period() or due)
                for peer in server.events.tell():
                    log.info("a listener to events has gone")
                    drop(peer)
                for session in sessions.values():
                    session.forget(time.monotonic())
                if server.retired and time.monotonic() >= look_at:
                    look_at = time.monotonic() + _CHECK_S
                    if server.finished():
                        return
                for key, _events in ready_keys:
                    ready: Any = key.fileobj
                    if ready is wake:
                        return
                    if ready is listener:
                        accepted = _accept(listener)
                        if accepted is not None:
                            sessions[accepted] = Session()
                            selector.register(accepted, selectors.EVENT_READ)
                    elif ready in sessions and not _serve_one(server, sessions[ready], ready):
                        drop(ready)
        finally:
            for peer in sessions:
                peer.close()


def _accept(listener: socket.socket) -> socket.socket | None:
    try:
        peer, _address = listener.accept()
    except OSError as error:
        log.error("cannot accept on the control socket: %s", error.strerror)
        time.sleep(_ACCEPT_PAUSE_S)  # whoever dialled still waits, and wakes us again at once
        return None
    pid, uid = control_socket.peer_credentials(peer)
    if uid not in (0, os.geteuid()):
        log.warning("control connection of pid %d, uid %d turned away", pid, uid)
        peer.close()
        return None
    peer.settimeout(_PEER_TIMEOUT_S)
    return peer


def _serve_one(server: ControlServer, session: Session, peer: socket.socket) -> bool:
    """One request; False when the connection is of no further use."""
    if peer in server.events:
        return False  # it has ended, or does not keep to the protocol
    try:
        body, fds = control_socket.receive(peer)
        answer, answer_fds = server.handle(session, body, fds)
        with control_socket.packed(contract.encode(answer), answer_fds) as message:
            control_socket.send(peer, message)
        if session.subscribed:
            server.events.add(peer)
    except control_socket.ControlClosed:
        return False
    except control_socket.ControlError as error:
        log.warning("control connection dropped: %s", error)
        return False
    return True
