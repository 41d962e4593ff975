"""The core process's decision thread: the C core's questions, answered by nodeseal.mesh.decide.

How it works: the C side puts a question into its queue and the flow waits; this thread takes all that are waiting (a
fresh node has a thousand at once; the core hands them out of each workload in turn). For each it reads the current
model once (one reference holds model and epoch together, so that an answer is never made from one and stamped with the
other), asks the pure function and fills the answer. The C side caches it until the next epoch, or for as long as the
answer says (nodeseal.splice.choice).

What must hold: every question is answered. Anything unforeseen is answered "unavailable" with the reason
"internal-error" and costs one log line. Without a model nothing is known of peers, so nothing is allowed.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nodeseal.contracts.refusal import Refusal
from nodeseal.mesh import decide
from nodeseal.mesh.address import OriginalDestination, TunnelAddress
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.mesh.reasons import WhyRefused
from nodeseal.mesh.spiffe import Identity, PathId, SpiffeIdError, parse_identity
from nodeseal.splice import native
from nodeseal.splice.choice import Affinities, Choice
from nodeseal.splice.native import Core, LimitNotice, Question

log = logging.getLogger("nodeseal.core")

INTERNAL_ERROR = "internal-error"
NO_MESH_STATE = "no-mesh-state"
_WAIT_MS = 500
_QUESTIONS_AT_ONCE = 64
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
        self._affinities = Affinities()
        self._logged_at = float("-inf")
        self._unlogged = 0

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop_asking(self) -> None:
        """No question is taken after those in hand; call before core_stop, then join()."""
        self._stopping.set()

    def join(self) -> None:
        """Waits for the thread's end (at most one wait for a question)."""
        self._thread.join()

    def _run(self) -> None:
        ffi, lib = self._core.native.ffi, self._core.native.lib
        questions = native.Questions(ffi, _QUESTIONS_AT_ONCE)
        answer = native.Answer(ffi)
        while not self._stopping.is_set():
            count = lib.core_next_questions(self._core.handle, questions.array, questions.capacity, _WAIT_MS)
            self.log_limits()
            self.log_refusals()
            for index in range(count):
                self.answer(questions[index], answer)
                lib.core_answer(self._core.handle, answer.structure)

    def log_limits(self) -> None:
        """A line for each workload and limit that refused connections lately; the core says so at intervals."""
        for notice in self._core.limit_notices():
            name = self._name_of(notice.workload)
            if name is not None:
                log.warning("workload %s: limit reached: %s", name, _limit_text(notice))

    def log_refusals(self) -> None:
        """A line for each peer that was refused lately, or refused us; the core says so at intervals."""
        for key, refusal in self._core.refusal_notices():
            name = self._name_of(key)
            if name is not None:
                log.warning("workload %s: %s", name, _refusal_text(refusal))

    def answer(self, question: Question, answer: native.Answer) -> None:
        """Fills `answer` for `question`; never raises."""
        state = self.state
        try:
            if state is None:
                answer.fill(question.id, 0, native.NOT_YET, NO_MESH_STATE)
            else:
                self._decide(state, question, answer)
        except Exception as error:
            answer.fill(question.id, state.epoch if state is not None else 0, native.UNAVAILABLE, INTERNAL_ERROR)
            self._report(question, error)

    def _decide(self, state: State, question: Question, answer: native.Answer) -> None:
        mesh, epoch = state.mesh, state.epoch
        name = self._name_of(question.workload)
        if name is None:
            answer.fill(question.id, epoch, native.NOT_YET, WhyRefused.UNKNOWN_WORKLOAD)
            return
        address, port = question.destination, question.port
        choice = Choice(self._affinities, self._random, name)
        result: decide.Route | decide.Refuse | decide.Allow | decide.Deny | decide.Unavailable
        if question.kind == native.ASK_OUTBOUND:
            destination = OriginalDestination(address, port)
            result = decide.outbound(
                mesh, name, destination, established=question.established, choose=choice.of_service
            )
        elif question.kind == native.ASK_INBOUND_TUNNEL:
            peer = _peer(question.peer, mesh.trust_domain)
            if isinstance(peer, WhyRefused):
                answer.fill(question.id, epoch, native.REFUSE, peer)
                return
            result = decide.inbound_tunnel(mesh, name, peer, question.source, TunnelAddress(address, port))
        elif question.kind == native.ASK_INBOUND_PLAINTEXT:
            result = decide.inbound_plaintext(mesh, name, question.source, port, established=question.established)
        else:
            raise ValueError(f"question of an unknown kind {question.kind}")

        match result:
            case decide.Route(endpoints=endpoints):
                count = self._fill_endpoints(answer, choice.cut(endpoints))
                answer.fill(question.id, epoch, native.ALLOW, "", endpoints=count, valid_ms=choice.valid_ms)
            case decide.Allow(why=why):
                answer.fill(question.id, epoch, native.ALLOW, why or "")
            case decide.Refuse(why=why_refused) | decide.Deny(why=why_refused):
                answer.fill(question.id, epoch, native.REFUSE, why_refused)
            case decide.Unavailable(why=why_unavailable):
                verdict = native.NOT_YET if result.passes else native.UNAVAILABLE
                answer.fill(question.id, epoch, verdict, why_unavailable)

    def _fill_endpoints(self, answer: native.Answer, endpoints: Sequence[decide.Plaintext | decide.Tunnel]) -> int:
        """How many there are."""
        if not endpoints:
            raise ValueError("a route without an endpoint")
        for index, endpoint in enumerate(endpoints):
            address, port = endpoint.address.address, endpoint.address.port
            if isinstance(endpoint, decide.Tunnel):
                answer.set_endpoint(index, address, port, identity=str(endpoint.identity), by_name=endpoint.by_name)
            else:
                answer.set_endpoint(index, address, port, reason=endpoint.why)
        return len(endpoints)

    def _report(self, question: Question, error: Exception) -> None:
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


def _limit_text(notice: LimitNotice) -> str:
    limit = f"{notice.limit} ({notice.value})" if notice.value else notice.limit
    return f"{limit}, {notice.refused} refused"


def _refusal_text(refusal: Refusal) -> str:
    if refusal.direction == "outbound":
        who = f"handshake with {refusal.destination} failed"
    else:
        status = f" {refusal.status}" if refusal.status else ""
        peer = f" of {refusal.peer}" if refusal.peer else ""
        who = f"refused {refusal.source}, {refusal.kind}{status} to {refusal.destination}{peer}"
    times = f" ({refusal.count} times)" if refusal.count > 1 else ""
    untold = f"; {refusal.untold} refusals of others are not told" if refusal.untold else ""
    return f"{who}: {refusal.words}{times}{untold}"


@functools.lru_cache(maxsize=1024)
def _peer(identity: bytes, own_domain: str) -> Identity | WhyRefused:
    """Or why there is no workload of that name. Whether one of another trust domain may come is decided with the rest;
    there an id may have any path."""
    try:
        found = parse_identity(identity.decode("utf-8", "replace"))
    except SpiffeIdError:
        return WhyRefused.UNKNOWN_PEER
    return WhyRefused.UNKNOWN_PEER if isinstance(found, PathId) and found.trust_domain == own_domain else found
