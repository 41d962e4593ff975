"""Certificates and keys that another tool writes into a directory: cert-manager's csi driver, Vault's agent, step-ca.

Theory of operation. Each workload has a directory with three files: its chain, its key, and trust anchors. Tools
replace them in ways of their own: one file after the other, or a link to a directory that has all of them, as the
kubelet does. What is read counts only if certificate and key belong together, the certificate is for the workload, and
is verified by an anchor that is there. As long as it does not, what was read before goes on.

This is an exception to the rule that keys are made on the node and live in memory only: see docs/identity.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from nodeseal.clock import utc_now
from nodeseal.identity.issuer import Fault, Flaw, Issuer, IssuerError, Svid
from nodeseal.identity.key import PrivateKey, PrivateKeyError
from nodeseal.identity.presented import PresentedError, read_chain, svid_of
from nodeseal.identity.trust import TrustBundle
from nodeseal.linux.inotify import file_system_type
from nodeseal.linux.permissions import PRIVATE, others_can
from nodeseal.local.issuers import DeliveredCa
from nodeseal.mesh.spiffe import SpiffeId

log = logging.getLogger("nodeseal.agent")

T = TypeVar("T")

CHECK_S = 2.0
"""So often the directory is looked at."""
BEGIN_S = 30.0
"""So long the first trust anchors are waited for."""

_MAX_FILE = 1 << 20
_IN_MEMORY = {0x01021994, 0x858458F6}  # linux/magic.h: tmpfs, ramfs
_REMEDY = "see to the tool that writes there"

_Stamp = tuple[tuple[int, int, int], ...]


class DeliveredIssuer(Issuer):
    """Reads in a thread of its own: a disk that hangs keeps nobody else waiting."""

    def __init__(self, ca: DeliveredCa, *, now: Callable[[], datetime] = utc_now) -> None:
        """`now`: the wall clock."""
        self.trust_domain = ca.trust_domain
        self.bundle = TrustBundle.none(ca.trust_domain)
        self.anchor = ""
        self._ca = ca
        self._now = now
        self._asked: dict[SpiffeId, _Stamp] = {}
        """What was asked for, and how its files were when they were last read."""
        self._latest: dict[SpiffeId, str] = {}
        """The serial numbers of what was read last."""
        self._wrong: dict[SpiffeId, str] = {}
        """Why what is there now is not used."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="issuer")

    def describe(self) -> str:
        """See Issuer.describe."""
        return f"the directory {self._ca.directory}"

    async def begin(self) -> None:
        """See Issuer.begin: there are trust anchors."""
        deadline = asyncio.get_running_loop().time() + BEGIN_S
        while not self.bundle.fingerprints:
            await self._run(self._read_bundles)
            if not self.bundle.fingerprints:
                if asyncio.get_running_loop().time() >= deadline:
                    where = self._ca.directory / self._ca.pattern / self._ca.bundle
                    raise IssuerError(f"no trust anchors are in {where}; {_REMEDY}, or correct the setting 'ca'")
                await asyncio.sleep(CHECK_S)

    async def issue(self, identity: SpiffeId, present: Svid | None = None) -> Svid:
        """See Issuer.issue: what is there now."""
        del present
        return await self._run(lambda: self._issue(identity))

    def superseded(self, svid: Svid) -> bool:
        """See Issuer.superseded."""
        return self._latest.get(svid.identity, svid.serial) != svid.serial

    async def changes(self) -> AsyncIterator[TrustBundle]:
        """See Issuer.changes."""
        told: object = None
        while True:
            if (now := (self.bundle, dict(self._latest))) != told:
                told = now
                yield self.bundle
            await asyncio.sleep(CHECK_S)
            await self._run(self._refresh)

    async def condition(self) -> tuple[Fault, ...]:
        """See Issuer.condition."""
        return await self._run(lambda: tuple(self._faults()))

    async def close(self) -> None:
        """See Issuer.close."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # ---- in the thread

    def _issue(self, identity: SpiffeId) -> Svid:
        self._read_bundles()
        stamp = self._stamp(identity)
        self._asked[identity] = stamp
        try:
            svid = self._read(identity)
        except PresentedError as error:
            self._wrong[identity] = str(error)
            raise IssuerError(f"the certificate of {identity} in {self._place(identity)} {error}; {_REMEDY}") from None
        self._wrong.pop(identity, None)
        self._latest[identity] = svid.serial
        self.anchor = svid.anchor
        return svid

    def _refresh(self) -> None:
        """Looks for what is new: trust anchors, and certificates of those that were asked for."""
        self._read_bundles()
        for identity, before in list(self._asked.items()):
            if (stamp := self._stamp(identity)) == before and identity not in self._wrong:
                continue
            try:
                self._latest[identity] = self._read(identity).serial
            except PresentedError as error:
                # A tool that writes one file after the other is seen in between: so it is read again the next time.
                self._wrong[identity] = str(error)
                continue
            self._asked[identity] = stamp
            self._wrong.pop(identity, None)

    def _read(self, identity: SpiffeId) -> Svid:
        """Raises PresentedError."""
        place = self._place(identity)
        chain = self._text(place / self._ca.certificate)
        read_chain(chain)
        secret = bytearray(_MAX_FILE // 16)
        try:
            key = PrivateKey.read(memoryview(secret)[: _fill(place / self._ca.key, secret)])
        except PrivateKeyError as error:
            raise PresentedError(f"is there, and {place / self._ca.key} cannot be used: {error}") from None
        except OSError as error:
            raise PresentedError(
                f"is there, and {place / self._ca.key} cannot be read: {error.strerror or error}"
            ) from None
        finally:
            secret[:] = bytes(len(secret))
        return svid_of(identity, chain, key, self.bundle, now=self._now(), delivered=True)

    def _text(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                return file.read(_MAX_FILE).decode("utf-8", "replace")
        except OSError as error:
            raise PresentedError(f"cannot be read ({path}: {error.strerror or error})") from None

    def _read_bundles(self) -> None:
        """The trust anchors of all workloads' directories, and of the directory itself."""
        pattern = self._ca.pattern.format(namespace="*", service_account="*")
        of_workloads = sorted(self._ca.directory.glob(f"{pattern}/{self._ca.bundle}"))
        found = []
        for path in (self._ca.directory / self._ca.bundle, *of_workloads):
            try:
                found.append(TrustBundle.read(self.trust_domain, self._text(path)))
            except (PresentedError, ValueError):
                continue
        if found:
            joined = TrustBundle.joined(self.trust_domain, found)
            if joined != self.bundle:
                log.info("the trust anchors in %s were read anew", self._ca.directory)
                self.bundle = joined
        if self.anchor not in self.bundle.fingerprints:
            self.anchor = min(self.bundle.fingerprints, default="")

    def _place(self, identity: SpiffeId) -> Path:
        path = self._ca.pattern.format(namespace=identity.namespace, service_account=identity.service_account)
        return self._ca.directory / path

    def _stamp(self, identity: SpiffeId) -> _Stamp:
        stamps = []
        for name in (self._ca.certificate, self._ca.key):
            try:
                status = (self._place(identity) / name).stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(stamps)

    def _faults(self) -> Iterator[Fault]:
        self._refresh()
        for identity, why in sorted(self._wrong.items()):
            text = f"the certificate of {identity} in {self._place(identity)} is not used, for it {why}"
            yield Fault(Flaw.STALE, text, _REMEDY)
        kind = file_system_type(self._ca.directory)
        if kind is not None and kind not in _IN_MEMORY:
            text = f"private keys are on a disk: {self._ca.directory} is on no tmpfs"
            yield Fault(Flaw.ON_DISK, text, "mount a tmpfs there")
        yield from self._exposed()

    def _exposed(self) -> Iterator[Fault]:
        try:
            if others_can(self._ca.directory.stat(), PRIVATE) is None:
                return
        except OSError:
            return
        for identity in sorted(self._asked):
            path = self._place(identity) / self._ca.key
            try:
                why = others_can(path.stat(), PRIVATE)
            except OSError:
                continue
            if why is not None:
                yield Fault(Flaw.EXPOSED, f"others can read {path}: {why}", f"chmod 700 {self._ca.directory}")


def _fill(path: Path, into: bytearray) -> int:
    """Reads a file, without a copy in an object that cannot be wiped; how many bytes. Raises OSError,
    PresentedError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = 0
        while size < len(into) and (got := os.readv(descriptor, [memoryview(into)[size:]])):
            size += got
    finally:
        os.close(descriptor)
    if size == len(into):
        raise PresentedError(f"is there, and {path} is too large for a private key")
    return size
