"""How far one workload is on its way, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from nodeseal.enrolment.certificate import Certificate
from nodeseal.enrolment.context import Context
from nodeseal.enrolment.failure import Failure
from nodeseal.enrolment.installed import Installed
from nodeseal.mesh.model import Connect, Phase, Workload, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord, WhyNotEnrolled


@dataclass(eq=False)
class EnrolmentState:
    """`wanted_state` is what the mesh state says now, `installed` what is in place."""

    name: WorkloadName
    context: Context
    wanted_state: Workload | None = None
    installed: Installed | None = None
    phase: Phase = Phase.ABSENT
    failure: Failure | None = None
    departing: str | None = None
    """The network namespace that is about to go with its pod: nothing is captured there any more."""
    stepped: Callable[[], None] = field(default=lambda: None, repr=False)
    """Called when a step is over, or has failed."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    certificate: Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.certificate = Certificate(self.name, self.context, self.wake)

    @property
    def published(self) -> bool:
        """Belongs into this node's publication."""
        return self.phase in (Phase.JOINING, Phase.ENROLLED)

    def as_published(self) -> Workload | None:
        """As other nodes are to know it: where and as whom it was captured, with what the mesh state says now of its
        mode and of what passes by. None: it does not belong into the publication."""
        if not self.published or self.installed is None:
            return None
        captured = self.installed.workload
        now = self.wanted_state or captured
        return replace(captured, phase=Phase.ENROLLED, mode=now.mode, exclude=now.exclude)

    @property
    def pending(self) -> bool:
        """It is to be enrolled, nothing is in place yet, and nothing has gone wrong."""
        wanted = self.wanted_state
        may = wanted is not None and wanted.wanted and wanted.netns is not None
        return may and self.installed is None and self.failure is None

    @property
    def finished(self) -> bool:
        """The mesh state does not know it and nothing is in place: it can be forgotten."""
        return self.wanted_state is None and self.installed is None

    def is_behind(self, incarnation: int) -> bool:
        """Whether something is in place that the core of this number does not have."""
        installed = self.installed
        return installed is not None and not installed.removing and installed.incarnation != incarnation

    @property
    def shares_port(self) -> bool:
        """Whether a process of the node is captured, which all have port 15008 together."""
        return self.installed is not None and self.installed.workload.host is not None

    @property
    def lacks_listeners(self) -> bool:
        """Whether its core has yet to get some of its listeners."""
        return self.installed is not None and bool(self.installed.lacking())

    def wake(self) -> None:
        """Something changed: the driver looks again at once."""
        self._changed.set()

    def astray(self, installed: Installed) -> Iterator[tuple[ProblemWord, str, str]]:
        """(word, one line, remedy) of each way in which its addresses are not as the mesh state has them."""
        found = installed.captured.addresses
        if found.uncaptured:
            version = 6 if ":" in found.uncaptured[0] else 4
            yield (
                ProblemWord.FAMILY_NOT_CAPTURED,
                f"connections over IPv{version} are not captured: it has {', '.join(found.uncaptured)}, but no "
                f"IPv{version} address in the mesh state",
                "give it 'addresses' of both",
            )
        if found.unattributed:
            yield (
                ProblemWord.ADDRESS_NOT_ATTRIBUTED,
                f"it has {', '.join(found.unattributed)}, which the mesh state does not give to it: peers do not know",
                "add to its 'addresses' there what is its own",
            )
        if found.absent:
            yield (
                ProblemWord.ADDRESS_ABSENT,
                f"{', '.join(found.absent)} of the mesh state cannot be used in its network namespace",
                "correct its 'addresses' there, or put it on a device",
            )

    def problems(self) -> Iterator[Problem]:
        """What is wrong with it now; see nodeseal.node.problems."""
        name, wanted, installed = str(self.name), self.wanted_state, self.installed
        if installed is not None and installed.has_expired(self.context.now()):
            why = f" ({self.certificate.failure})" if self.certificate.failure else ""
            text = f"{name}: its certificate has expired{why}"
            yield Problem(ProblemWord.CERTIFICATE_EXPIRED, text, "look at the CA directory and at the clock", name)
        elif installed is not None and self.certificate.failure is not None:
            text = f"{name}: {self.certificate.failure}"
            yield Problem(ProblemWord.CERTIFICATE_NOT_RENEWED, text, "it is tried again", name)
        if installed is not None and self.phase is Phase.ENROLLED:
            for word, text, remedy in self.astray(installed):
                yield Problem(word, f"{name}: {text}", remedy, name)
        if installed is not None and self.phase is Phase.ENROLLED and self._is_early(installed):
            text = f"{name}: its connections are accepted before the far side has accepted them"
            if installed.captured.backend == "iptables" and self.context.capture.early:
                text += f": {self.context.capture.early}"
            remedy = "let eBPF capture it, upgrade the core, or say 'connect: early' if that is meant"
            yield Problem(ProblemWord.CONNECT_EARLY, text, remedy, name)
        if self.failure is not None:
            again = max(0.0, self.failure.retry_at - asyncio.get_running_loop().time())
            lacks = installed is None and wanted is not None and wanted.wanted
            word = ProblemWord.NOT_ENROLLED if lacks else ProblemWord.UPKEEP_FAILED
            yield Problem(word, f"{name}: {self.failure.detail}", f"next try in {again:.0f} s", name)
        elif installed is None and wanted is not None and wanted.wanted and wanted.netns is None:
            text = f"{name}: the mesh state gives it no 'netns'"
            yield Problem(ProblemWord.NOT_ENROLLED, text, "give it one there", name)

    def _is_early(self, installed: Installed) -> bool:
        """Whether somebody has asked for `connect: truthful`, and it is not so."""
        asked = (self.wanted_state or installed.workload).connect or self.context.connect
        return asked is Connect.TRUTHFUL and not installed.captured.parking

    def why(self) -> tuple[WhyNotEnrolled | None, str | None]:
        """(reason, detail) for the status: why it is not enrolled, or what is wrong although it is."""
        detail = self.failure.detail if self.failure is not None else self.certificate.failure
        if self.installed is not None:
            if self.phase is Phase.ENROLLED:
                return None, detail or next((text for _, text, _ in self.astray(self.installed)), None)
            if self.phase is Phase.JOINING:
                return WhyNotEnrolled.JOINING, detail
            draining = "connections that were opened while it was enrolled go on" if self.installed.draining else None
            return WhyNotEnrolled.LEAVING, detail or draining
        wanted = self.wanted_state
        if wanted is None or not wanted.wanted:
            return WhyNotEnrolled.NOT_WANTED, None
        if wanted.netns is None:
            return WhyNotEnrolled.NO_NETNS, "the mesh state gives it no 'netns'"
        if self.failure is not None:
            return self.failure.reason, self.failure.detail
        return WhyNotEnrolled.PENDING, self.context.core.error
