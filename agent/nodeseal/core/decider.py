"""The core process's decision thread: the C core's questions, answered by nodeseal.mesh.decide.

How it works: the C side puts a question into its queue and the flow waits; this thread takes one question at a time,
reads the current model once (one reference holds model and epoch together, so that an answer is never made from one
and stamped with the other), asks the pure function and fills the answer. The C side caches it until the next epoch.

What must hold: every question is answered. Anything unforeseen is answered "unavailable" with the reason
"internal-error" and costs one log line. Without a model nothing is known of peers, so nothing is allowed.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nodeseal.core import native
from nodeseal.core.native import Core
from nodeseal.mesh import decide
from nodeseal.mesh.address import OriginalDestination, TunnelAddress
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.mesh.reasons import WhyRefused
from nodeseal.mesh.spiffe import SpiffeId, SpiffeIdError

log = logging.getLogger("nodeseal.core")

INTERNAL_ERROR = "internal-error"
NO_MESH_STATE = "no-mesh-state"
_WAIT_MS = 500
_LOG_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class State:
    """A mesh model and the epoch it is known by; replaced as a whole."""

    mesh: Mesh
    epoch: int


class Decider:
    """Answers the core's questions in a thread of its own.

    `name_of` gives the workload's name for a key of core_workload_add, or None for one that was removed.
    """

    def __init__(self, core: Core, name_of: Callable[[int], WorkloadName | None]) -> None:
        self._core = core
        self._name_of = name_of
        self.state: State | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decide", daemon=True)
        self._random = random.Random()  # noqa: S311  (spreads load, protects nothing)
        self._logged_at = float("-inf")
        self._unlogged = 0

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop_asking(self) -> None:
        """No question is taken after the one in hand; call before core_stop, then join()."""
        self._stopping.set()

    def join(self) -> None:
        """Waits for the thread's end (at most one wait for a question)."""
        self._thread.join()

    def _run(self) -> None:
        ffi, lib = self._core.native.ffi, self._core.native.lib
        question = ffi.new("struct ns_question *")
        answer = ffi.new("struct ns_answer *")
        while not self._stopping.is_set():
            if lib.core_next_question(self._core.handle, question, _WAIT_MS):
                self.answer(question, answer)
                lib.core_answer(self._core.handle, answer)

    def answer(self, question: Any, answer: Any) -> None:
        """Fills `answer` (struct ns_answer) for `question` (struct ns_question); never raises."""
        state = self.state
        answer.id = question.id
        answer.epoch = state.epoch if state is not None else 0
        try:
            if state is None:
                self._fill(answer, native.UNAVAILABLE, NO_MESH_STATE)
            else:
                self._decide(state.mesh, question, answer)
        except Exception as error:
            self._fill(answer, native.UNAVAILABLE, INTERNAL_ERROR)
            self._report(question, error)

    def _decide(self, mesh: Mesh, question: Any, answer: Any) -> None:
        name = self._name_of(question.workload)
        if name is None:
            self._fill(answer, native.UNAVAILABLE, WhyRefused.UNKNOWN_WORKLOAD)
            return
        source, _source_port = native.unpack_address(question.source)
        address, port = native.unpack_address(question.destination)
        established = bool(question.established)
        result: decide.Route | decide.Refuse | decide.Allow | decide.Deny | decide.Unavailable
        if question.kind == native.ASK_OUTBOUND:
            result = decide.outbound(mesh, name, OriginalDestination(address, port), established=established)
        elif question.kind == native.ASK_INBOUND_TUNNEL:
            try:
                peer = SpiffeId.parse(native.text(self._core.native.ffi, question.peer))
            except SpiffeIdError:
                self._fill(answer, native.REFUSE, WhyRefused.UNKNOWN_PEER)
                return
            result = decide.inbound_tunnel(mesh, name, peer, source, TunnelAddress(address, port))
        elif question.kind == native.ASK_INBOUND_PLAINTEXT:
            result = decide.inbound_plaintext(mesh, name, source, port, established=established)
        else:
            raise ValueError(f"question of an unknown kind {question.kind}")

        match result:
            case decide.Route(endpoints=endpoints):
                self._fill_route(answer, endpoints)
            case decide.Allow(why=why):
                self._fill(answer, native.ALLOW, why or "")
            case decide.Refuse(why=why_refused) | decide.Deny(why=why_refused):
                self._fill(answer, native.REFUSE, why_refused)
            case decide.Unavailable(why=why_unavailable):
                self._fill(answer, native.UNAVAILABLE, why_unavailable)

    def _fill(self, answer: Any, verdict: int, reason: str) -> None:
        answer.verdict = verdict
        answer.endpoint_count = 0
        answer.reason = native.fit(reason, self._core.native.lib.NS_REASON_MAX)

    def _fill_route(self, answer: Any, endpoints: tuple[decide.Plaintext | decide.Tunnel, ...]) -> None:
        if not endpoints:
            raise ValueError("a route without an endpoint")
        lib = self._core.native.lib
        if len(endpoints) > lib.NS_ENDPOINTS_MAX:
            endpoints = tuple(self._random.sample(endpoints, lib.NS_ENDPOINTS_MAX))
        for slot, endpoint in zip(answer.endpoints, endpoints, strict=False):
            native.pack_address(slot.address, endpoint.address.address, endpoint.address.port)
            if isinstance(endpoint, decide.Tunnel):
                identity = str(endpoint.identity).encode()
                # A shortened identity would be another one: an error, never cut.
                if len(identity) >= lib.NS_IDENTITY_MAX:
                    raise ValueError("an identity that is too long for the core")
                slot.tunnel, slot.identity, slot.reason = 1, identity, b""
            else:
                slot.tunnel, slot.identity = 0, b""
                slot.reason = native.fit(endpoint.why, lib.NS_REASON_MAX)
        answer.verdict = native.ALLOW
        answer.endpoint_count = len(endpoints)
        answer.reason = b""

    def _report(self, question: Any, error: Exception) -> None:
        now = time.monotonic()
        if now - self._logged_at < _LOG_INTERVAL_S:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more like it were not logged)" if self._unlogged else ""
        self._logged_at, self._unlogged = now, 0
        text = " ".join(str(error).split())
        log.error(
            "a decision failed, the flow is refused: workload key %d, kind %d: %s: %s%s",
            question.workload,
            question.kind,
            type(error).__name__,
            text,
            more,
        )
