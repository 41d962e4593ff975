"""The signer of a CA directory that may change: read anew when it has, and kept when what is there cannot be used.

The certificate service and an agent that signs by itself have one each.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from nodeseal.authority import store
from nodeseal.authority.certificates import trust_domain
from nodeseal.authority.description import endings
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.signer import Signer
from nodeseal.authority.store import INTERMEDIATE_CERTIFICATE

log = logging.getLogger("nodeseal.ca")


class HeldSigner(ABC):
    """Wherever the CA is."""

    trust_domain: str
    """Stays the same."""
    signer: Signer | None = None
    """The last one that could be used when it was read; None: there was none yet. Replaced as a whole."""
    why: str | None = None
    """Why what is there now is not used, one line; None: it is."""
    place: str
    """Where it is, for people: "the CA directory /etc/nodeseal/ca"."""

    @abstractmethod
    def refresh(self) -> str | None:
        """Looks whether it has changed; may wait for a disk. `why`, as it is then."""

    @abstractmethod
    def warnings(self, now: datetime) -> list[str]:
        """What ends soon, one line each."""


class LiveSigner(HeldSigner):
    """The directory is looked at by `refresh`."""

    def __init__(self, directory: Path, now: Callable[[], datetime]) -> None:
        """`now`: the wall clock. A CA that cannot sign, as one that has expired, is taken: it may be renewed. Raises
        AuthorityError when the directory does not even say its trust domain."""
        self.directory = directory
        self._now = now
        self._stamp: store.Stamp | None = None
        self.place = f"the CA directory {directory}"
        path = directory / INTERMEDIATE_CERTIFICATE
        self.trust_domain = trust_domain(store.read_certificates(path)[0], path)
        self.why = self.refresh()

    def warnings(self, now: datetime) -> list[str]:
        """See HeldSigner."""
        if self.signer is None:
            return []
        return [f"{one.text}: {one.remedy}" for one in endings(self.directory, self.signer, now)]

    def refresh(self) -> str | None:
        """Reads a changed directory anew. `why`, as it is then."""
        stamp = store.stamp(self.directory)
        # As it was before: it may have been something else in between.
        self.why = None if stamp == self._stamp else self._take(stamp)
        return self.why

    def _take(self, stamp: store.Stamp) -> str | None:
        try:
            signer = Signer.load(self.directory, self._now())
        except AuthorityError as error:
            return str(error)
        if signer.trust_domain != self.trust_domain:
            return f"it is for the trust domain {signer.trust_domain}, and what runs is for {self.trust_domain}"
        if self.signer is not None:
            log.info("the CA directory %s was read anew", self.directory)
        self.signer, self._stamp = signer, stamp
        return None
