"""What is revoked, as this node knows it: by the mesh state, and by the revocation lists of other issuers that its
configuration names. Cores are told of it, and nothing is issued for an identity that is revoked.

What a list said last stays revoked while its file is gone or broken.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from nodeseal.authority.crl import RevocationList, read_crl
from nodeseal.authority.errors import AuthorityError
from nodeseal.cores.client import CoreError
from nodeseal.cores.revocation_pusher import RevocationPusher
from nodeseal.enrolment.enrolments import Enrolments
from nodeseal.identity.issuer import Svid
from nodeseal.mesh.model import Mesh
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.mesh.revocation import REVOCATIONS, Revocation, RevocationKey, identities_of, nodes_of
from nodeseal.mesh.revoked import holds, of_issued, of_revocations, of_serial, packed, union
from nodeseal.mesh.spiffe import Identity

log = logging.getLogger("nodeseal.agent")

LOOK_S = 1.0
"""So often the files of revocation lists are looked at."""
AGAIN_S = 10.0
"""So long after it one that could not be read is read again."""

_Stamp = tuple[int, int, int] | None


class Revocations:
    """All methods belong to the event loop."""

    def __init__(
        self,
        node: str,
        files: Sequence[Path],
        pusher: RevocationPusher,
        enrolments: Enrolments,
        now: Callable[[], datetime],
    ) -> None:
        """`files`: revocation lists."""
        self._node = node
        self._files = files
        self._pusher = pusher
        self._enrolments = enrolments
        self._now = now
        self._turn = asyncio.Lock()
        self._table: Mapping[RevocationKey, Revocation] | None = None
        self._trust_domain = ""
        self._identities: Mapping[Identity, Revocation] = {}
        self._own_node: Revocation | None = None
        self._lists: dict[Path, RevocationList] = {}
        self._stamps: dict[Path, _Stamp] = {}
        self._unread: dict[Path, str] = {}
        self._again: dict[Path, float] = {}
        """When one that could not be read is tried again though its file is the same, by the monotonic clock."""
        self._failure: str | None = None
        self._all = b""
        """All that is revoked, packed."""
        self._packed: dict[Revocation, bytes] = {}
        """By what is revoked: the digests of it."""

    # ---- what is revoked

    async def take(self, mesh: Mesh) -> None:
        """The mesh state is this from now on. Returns when the current core knows what is revoked; never raises."""
        table = mesh.of(REVOCATIONS)
        if table is self._table or (self._table is not None and table == self._table):
            self._table = table
            return await self.push()
        self._table, self._trust_domain = table, mesh.trust_domain
        self._identities, nodes = identities_of(table.values()), nodes_of(table.values())
        self._own_node = nodes.get(self._node)
        if table:
            log.warning("the mesh state has %d revocations", len(table))
        return await self._changed()

    async def run(self) -> None:
        """Follows the revocation lists. Never ends."""
        while True:
            if await self.look():
                await self._changed()
            await asyncio.sleep(LOOK_S if self._files else 3600.0)

    async def look(self) -> bool:
        """Reads the lists that have changed; whether one says something else."""
        changed, clock = False, asyncio.get_running_loop().time
        for path in self._files:
            stamp = await asyncio.to_thread(_stamp, path)
            if path in self._stamps and self._stamps[path] == stamp and clock() < self._again.get(path, math.inf):
                continue
            self._stamps[path] = stamp
            self._again.pop(path, None)
            try:
                found = await asyncio.to_thread(read_crl, path)
            except AuthorityError as error:
                if self._unread.get(path) != str(error):
                    log.warning("%s; what it said before stays revoked", error)
                self._unread[path] = str(error)
                # Also if the file stays: what was wrong may have been something else, as no descriptors left.
                self._again[path] = clock() + AGAIN_S
                continue
            self._unread.pop(path, None)
            log.info("the revocation list %s names %d certificates", path, len(found.digests) // 16)
            changed = changed or path not in self._lists or self._lists[path].digests != found.digests
            self._lists[path] = found
        return changed

    async def _changed(self) -> None:
        async with self._turn:
            if self._table is None:
                return  # without a mesh state nobody knows all of it: cores keep what they have
            self._all = await asyncio.to_thread(self._digests, list(self._table.values()), self._trust_domain)
            self._pusher.take(self._all)
        await self.push()
        # One's certificate may be among them, or an identity that was is none any more.
        self._enrolments.retry_certificates()

    def _digests(self, revocations: Sequence[Revocation], trust_domain: str) -> bytes:
        """In a thread. Those of a revocation are made once: a list of serial numbers may be long."""
        known = self._packed
        self._packed = {one: known.get(one) or packed(of_revocations((one,), trust_domain)) for one in revocations}
        return union([*self._packed.values(), *(one.digests for one in self._lists.values())])

    async def push(self) -> None:
        """Brings the cores what they do not have yet. Never raises: what one does not take is tried again."""
        try:
            await self._pusher.push()
            self._failure = None
        except CoreError as error:
            if self._failure is None:
                log.error("the core did not take the revocations: %s; sending them again", error)
            self._failure = str(error)

    # ---- what follows for this node

    def why_not_issued(self, identity: Identity) -> str | None:
        """Why no certificate may be issued for it here, one line; None: it may."""
        if self._own_node is not None:
            return f"the node {self._node} is revoked{self._own_node.because}: nodeseal revoke node --undo"
        if (found := self._identities.get(identity)) is not None:
            return f"{identity} is revoked{found.because}: nodeseal revoke {found.key.what} --undo"
        return None

    def names(self, svid: Svid) -> bool:
        """Whether it is revoked by its serial number, and another one of its identity would not be."""
        if not self._all:
            return False
        number = int(svid.serial, 16)
        forms = of_serial(svid.identity.trust_domain, number), of_issued(svid.issuer_name, number)
        return any(holds(self._all, one) for one in forms)

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        for name, enrolment in sorted(self._enrolments.items()):
            if enrolment.installed is None:
                continue
            why = self.why_not_issued(enrolment.installed.identity)
            if why is not None:
                text = f"{name}: {why.partition(': ')[0]}: none of its tunnels works"
                remedy = "give it another service account, or take the revocation back"
                yield Problem(ProblemWord.IDENTITY_REVOKED, text, remedy, str(name))
        for path, why in self._unread.items():
            yield Problem(ProblemWord.REVOCATION_LIST_UNREAD, why, f"correct {path}; what it said before stays revoked")
        for path, one in self._lists.items():
            if one.next_update is not None and one.next_update < self._now():
                text = f"the revocation list {path} should have been replaced by {one.next_update:%Y-%m-%d %H:%M}Z"
                yield Problem(ProblemWord.REVOCATION_LIST_STALE, text, "bring its issuer's present one")
        if self._failure is not None:
            text = f"the core did not take the revocations: {self._failure}"
            yield Problem(ProblemWord.REVOCATIONS_NOT_IN_FORCE, text, "it is tried again")
        if self._table or self._lists:
            for link in self._pusher.unaware:
                text = f"the core of generation {link.generation}, version {link.version}, knows of no revocation"
                remedy = f"end it (pid {link.pid}) if what is revoked must not go on there"
                yield Problem(ProblemWord.REVOCATIONS_NOT_IN_FORCE, text, remedy)


def _stamp(path: Path) -> _Stamp:
    """None: it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
