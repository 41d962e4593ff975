"""Asking for a workload's certificate beside everything else that is to be done for the workload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nodeseal.identity.credentials import Credential, Credentials
from nodeseal.mesh.spiffe import Identity


class CredentialRequest:
    """At most one request of one workload: however long the issuer takes, the workload goes on meanwhile."""

    def __init__(self, credentials: Credentials, wake: Callable[[], None]) -> None:
        """`wake` is called when the issuer has answered."""
        self._credentials = credentials
        self._wake = wake
        self._identity: Identity | None = None
        self._task: asyncio.Task[Credential] | None = None

    @property
    def waiting(self) -> bool:
        """Whether the issuer has yet to answer."""
        return self._task is not None and not self._task.done()

    def take(self, identity: Identity, present: Credential | None = None) -> Credential | None:
        """The answer to what was asked for, once; None while there is none, and when this is what asks. `present`: what
        it is to replace. Raises IssuerError when the answer is one; the next call asks anew."""
        if self._task is None or self._identity != identity:
            self.cancel()
            self._identity = identity
            asking = self._credentials.issue(identity, present)
            self._task = asyncio.create_task(asking, name=f"certificate of {identity}")
            self._task.add_done_callback(self._answered)
        if self.waiting:
            return None
        task, self._task = self._task, None
        return task.result()

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _answered(self, task: asyncio.Task[Credential]) -> None:
        if not task.cancelled():
            task.exception()  # it is raised by take(), if anybody still asks
            self._wake()
