"""The bundles of the trust domains that the mesh is federated with, as this node knows them: from the mesh state, from
the files and the bundle endpoints that it names, and from the node's Workload API where it says so.

What a bundle said last counts while it cannot be read; a domain of which none was ever read is not trusted. A domain
that the mesh state does not list is not trusted either, whoever gives its bundle. What endpoints gave is kept in the
run directory, so that an agent that starts does not depend on them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.spiffe_bundle import read_bundle, read_bundle_file, read_jwks
from nodeseal.clock import utc_now
from nodeseal.mesh.federated import FEDERATED, BundleEndpoint, Federated
from nodeseal.mesh.model import Mesh
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.node.fetched_bundle import BundleCopies, FetchedBundle

log = logging.getLogger("nodeseal.agent")

LOOK_S = 1.0
"""So often files are read anew, which are small, and endpoints are looked at whether one is due."""

_IDLE_S = 5.0  # while there is nothing to look at


class Federation:
    """`bundles`: the anchors (PEM) by trust domain. Replaced as a whole when it changes."""

    def __init__(
        self,
        run_dir: Path,
        own: Callable[[], str] = lambda: "",
        given: Callable[[], Mapping[str, str] | None] = lambda: None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`own`: the anchors (PEM) of the mesh's own trust domain; `given`: what the Workload API of this node gives of
        other domains (PEM), None if it has none."""
        self.bundles: Mapping[str, str] = {}
        self._own = own
        self._given = given
        self._now = now
        self._copies = BundleCopies(run_dir)
        self._turn = asyncio.Lock()
        """Held while domains are read: the mesh state may change meanwhile."""
        self._trust_domain = ""
        self._domains: tuple[Federated, ...] | None = None
        self._fetched: dict[str, FetchedBundle] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._beside: dict[str, str | None] = {}
        """The mesh state's own bundle of a domain with an endpoint, as far as it can be read."""
        self._unread: dict[str, tuple[str, str]] = {}
        """By trust domain: why, and what to do."""
        self._empty: frozenset[str] = frozenset()

    async def take(self, mesh: Mesh) -> None:
        """The mesh state is this from now on."""
        domains = tuple(mesh.of(FEDERATED).values())
        async with self._turn:
            self._trust_domain = mesh.trust_domain
            if domains != self._domains:
                self._domains = domains
                await self._take_endpoints({one.key: one.endpoint for one in domains if one.endpoint is not None})
                await self._look()

    async def run(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Follows files and endpoints; `changed` is called when a bundle is another one. Never ends."""
        async with asyncio.TaskGroup() as group:
            while True:
                alive = any(one.bundle_file or one.endpoint is not None for one in self._domains or ())
                await asyncio.sleep(LOOK_S if alive else _IDLE_S)
                before = self.bundles
                if alive:
                    await self.look()
                    self._fetch_due(group)
                if self.bundles is not before:
                    await changed()

    async def look(self) -> None:
        """Reads all of them anew, but for what endpoints gave last."""
        async with self._turn:
            await self._look()

    async def _look(self) -> None:
        found: dict[str, str] = {}
        unread: dict[str, tuple[str, str]] = {}
        for one in self._domains or ():
            try:
                bundle = await self._latest(one)
            except _NotGiven as error:
                bundle = None
                unread[one.key] = str(error), f"{_NOT_GIVEN}; until then none of its workloads is trusted"
                if one.key not in self._unread:
                    log.warning("%s", error)
            except AuthorityError as error:
                bundle, unread[one.key] = self._before(one.key), (str(error), "correct it; what it said before counts")
                if one.key not in self._unread:
                    log.warning("%s; what it said before counts", error)
            if bundle is not None:
                found[one.key] = bundle
        self._unread = unread
        empty = frozenset(domain for domain, bundle in found.items() if not bundle)
        for domain in sorted(empty - self._empty):
            log.warning("the bundle of %s has no trust anchor: none of its workloads is trusted", domain)
        self._empty = empty
        trusted = {domain: bundle for domain, bundle in found.items() if bundle}
        if trusted != self.bundles:
            log.info("federated with %s", ", ".join(sorted(trusted)) or "no trust domain")
            self.bundles = trusted

    def _before(self, domain: str) -> str | None:
        """What was known of it until now."""
        return self.bundles.get(domain, "" if domain in self._empty else None)

    async def _latest(self, one: Federated) -> str | None:
        """None: none is known. Raises AuthorityError."""
        if one.from_workload_api:
            given = self._given()
            if given is None:
                raise AuthorityError("its bundle is to come of the Workload API, and the `ca` of this node is none")
            if one.key not in given:
                raise _NotGiven(f"the Workload API of this node gives no bundle of {one.key}")
            return given[one.key]
        local = None
        if one.bundle or one.bundle_file:
            fetched = self._fetched.get(one.key)
            try:
                local = await asyncio.to_thread(_read, one)
            except AuthorityError:
                if fetched is None or fetched.given is None:
                    raise
        if one.endpoint is None:
            return local
        fetched = self._fetched[one.key]
        if local != self._beside.get(one.key) and fetched.given is not None and not fetched.counts(local):
            fetched.due = 0.0  # it is another one than at the last fetch, which is to be made by it
        self._beside[one.key] = local
        if fetched.given is not None and fetched.counts(local):
            return fetched.given.bundle.anchors
        # What it was known by before the mesh state named an endpoint counts until that has given one.
        return local if local is not None else self._before(one.key)

    # ---- bundle endpoints

    async def _take_endpoints(self, endpoints: Mapping[str, BundleEndpoint]) -> None:
        """The copies of domains that the mesh state does not list any more are deleted."""
        before, clock = self._fetched, asyncio.get_running_loop().time()
        found: dict[str, FetchedBundle] = {}
        for domain, endpoint in endpoints.items():
            fetched = before.get(domain)
            if fetched is None or fetched.endpoint != endpoint:
                given = fetched.given if fetched is not None else await asyncio.to_thread(self._copies.read, domain)
                fetched = FetchedBundle(endpoint, given, self._now(), clock)
            found[domain] = fetched
        # As a whole: what is being fetched for one that stays may come meanwhile.
        self._fetched = found
        self._beside = {domain: bundle for domain, bundle in self._beside.items() if domain in endpoints}
        try:
            await asyncio.to_thread(self._copies.keep_only, endpoints)
        except OSError as error:
            log.warning("cannot delete copies of bundles that are not needed any more: %s", error)

    def _fetch_due(self, group: asyncio.TaskGroup) -> None:
        """Nothing waits for an endpoint: each is asked in a task of its own."""
        clock = asyncio.get_running_loop().time()
        self._fetching = {domain: task for domain, task in self._fetching.items() if not task.done()}
        for domain, fetched in self._fetched.items():
            if fetched.due <= clock and domain not in self._fetching:
                work = self._fetch(domain, fetched)
                self._fetching[domain] = group.create_task(work, name=f"bundle of {domain}")

    async def _fetch(self, domain: str, fetched: FetchedBundle) -> None:
        # Here: it brings aiohttp, which takes 9 MB, and most meshes have no endpoint.
        from nodeseal.identity.bundle_endpoint import BundleEndpointError, fetch

        endpoint = fetched.endpoint
        shown_by = endpoint.trust_domain
        anchors = self._own() if shown_by == self._trust_domain else self.bundles.get(shown_by, "")
        clock, was_failing, before = asyncio.get_running_loop().time, fetched.failing, fetched.given
        try:
            data = await fetch(endpoint, anchors)
            bundle = await asyncio.to_thread(read_jwks, data, f"of {domain} from {endpoint.url}")
        except (BundleEndpointError, AuthorityError) as error:
            fetched.fail(str(error), self._now(), clock())
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever a stranger's answer brings about, a panic in Rust too, ends nothing
            log.exception("cannot fetch the bundle of %s", domain)
            fetched.fail(f"{endpoint.url}: {type(error).__name__}", self._now(), clock())
        else:
            fetched.take(bundle, self._beside.get(domain), self._now(), clock())
        if self._fetched.get(domain) is not fetched:
            return  # the mesh state has another endpoint by now, or none
        if fetched.failing is not None:
            if was_failing is None or was_failing[1] != fetched.failing[1]:
                log.warning("cannot fetch the bundle of %s: %s", domain, fetched.failing[1])
            return
        assert fetched.given is not None
        if was_failing is not None or before is None or before.bundle != fetched.given.bundle:
            sequence, anchors = fetched.given.bundle.sequence, fetched.given.bundle.anchors
            log.info(
                "fetched the bundle of %s from %s: %s, %d trust anchors; the next time in %.0f s", domain, endpoint.url,
                "no sequence number" if sequence is None else f"sequence number {sequence}",
                anchors.count("-----BEGIN"), fetched.interval,
            )  # fmt: skip
        try:
            await asyncio.to_thread(self._copies.write, domain, fetched.given)
            if domain not in self._fetched:  # the mesh state has let go of it meanwhile
                await asyncio.to_thread(self._copies.keep_only, tuple(self._fetched))
        except OSError as error:
            log.warning("cannot keep a copy of the bundle of %s: %s", domain, error)

    # ---- what is wrong

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        for domain, (why, remedy) in sorted(self._unread.items()):
            yield Problem(ProblemWord.BUNDLE_UNREAD, f"the trust domain {domain}: {why}", remedy, domain)
        for domain, fetched in sorted(self._fetched.items()):
            if fetched.failing is not None:
                since, why = fetched.failing
                text = f"the trust domain {domain}: its bundle could not be fetched since {_shown(since)}: {why}"
                remedy = f"see to the endpoint, or correct 'bundle_endpoint'; {self._what_counts(domain, fetched)}"
                yield Problem(ProblemWord.BUNDLE_UNREAD, text, remedy, domain)
        for domain in sorted(self._empty):
            text = f"the trust domain {domain}: its bundle has no trust anchor, so none of its workloads is trusted"
            yield Problem(ProblemWord.BUNDLE_EMPTY, text, "ask who runs it whether all of its keys are revoked", domain)

    def _what_counts(self, domain: str, fetched: FetchedBundle) -> str:
        beside = self._beside.get(domain)
        if fetched.given is not None and fetched.counts(beside):
            return f"what it gave at {_shown(fetched.given.at)} counts"
        if beside is not None:
            return "the bundle beside it counts"
        return "until then none of its workloads is trusted"


class _NotGiven(AuthorityError):
    """The Workload API gives no bundle, or none any more: each of its answers has all that there are."""


_NOT_GIVEN = "federate the agent's registration entry with it (SPIRE: -federatesWith)"


def _read(one: Federated) -> str:
    if one.bundle_file:
        return read_bundle_file(Path(one.bundle_file))
    return read_bundle(one.bundle.encode(), f"of the mesh state for {one.key}")


def _shown(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}Z"
