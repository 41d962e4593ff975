"""The certificate service's process: `nodeseal ca serve`. It stands by or issues, until SIGTERM or SIGINT.

Who holds the lock in the state directory has the store and issues. All others that were started for it listen, say that
they stand by, and take over as soon as the lock is free, which it is when its holder ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Self

from nodeseal import __version__
from nodeseal.authority import service_config, state_keys
from nodeseal.authority.admission import Residents
from nodeseal.authority.audit import Audit
from nodeseal.authority.audit_file import AuditFile
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.ledger import Ledger
from nodeseal.authority.live_signer import HeldSigner, LiveSigner
from nodeseal.authority.proof import TokenProof
from nodeseal.authority.recorder import Recorder
from nodeseal.authority.retention import Retention
from nodeseal.authority.server import Server
from nodeseal.authority.service import Queue, Service
from nodeseal.authority.service_config import ClusterConfig, ServiceConfig
from nodeseal.authority.state_keys import SERVICE, OwnKey, StateKeys
from nodeseal.authority.tls import bound_buffers, server_context
from nodeseal.clock import utc_now
from nodeseal.contracts.authority import STANDBY, Health
from nodeseal.daemon import ca_bundle_endpoint
from nodeseal.daemon.ca_bundle_endpoint import Endpoint
from nodeseal.daemon.composition import followed
from nodeseal.linux import hardening
from nodeseal.linux.lock_file import AlreadyLocked, LockFile
from nodeseal.sources.source import MeshStateError, Source

log = logging.getLogger("nodeseal.ca")

WRITER_LOCK = "writer.lock"

_SIGNERS = 2
"""Threads: a signature is made outside of the interpreter's lock, and all else is not."""

_SWITCH_S = 0.0005  # the event loop waits no longer for the interpreter's lock while a thread signs
_TAKE_OVER_S = 0.5
_REFRESH_S = 5.0
_KEY_S = 1.0
_SETTLE_S = 1.0
_PRUNE_S = 3600.0


def run(path: Path) -> int:
    """Serves with a configuration file until it is told to go. Raises AuthorityError."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = service_config.load(path)
    _prepare(config)
    if isinstance(config.place, ClusterConfig):
        # Here, so that no other service has the cluster's parts in its memory.
        from nodeseal.daemon.ca_in_cluster import serve

        asyncio.run(serve(config, config.place))
        return 0
    signer = LiveSigner(config.place.ca, utc_now)
    keys = StateKeys.load(config.state, signer.trust_domain, utc_now())
    asyncio.run(_run(config, signer, keys))
    return 0


def _prepare(config: ServiceConfig) -> None:
    os.umask(0o077)
    try:
        hardening.forbid_dumps()
        hardening.raise_descriptor_limit()
    except OSError as error:
        raise AuthorityError(f"cannot prepare the service's process: {error.strerror or error}") from None
    sys.setswitchinterval(_SWITCH_S)
    bound_buffers()
    state_keys.prepare(config.state)


async def _run(config: ServiceConfig, signer: LiveSigner, keys: StateKeys) -> None:
    loop = asyncio.get_running_loop()
    standby = Health(state=STANDBY, since=utc_now(), trust_domain=signer.trust_domain, version=__version__)
    server = Server(server_context(keys), standby, config.limits.connections)
    listen(server, config)
    log.info("the service's key has the SHA-256 %s", keys.pin)
    endpoint = ca_bundle_endpoint.begin(config, signer)
    rotation = asyncio.create_task(_follow_key(config.state, keys, server))
    work = asyncio.create_task(_serve(config, signer, keys, server, endpoint))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await work
    rotation.cancel()
    log.info("the certificate service goes")


def listen(server: Server, config: ServiceConfig) -> None:
    """At all addresses that are configured. Raises AuthorityError."""
    for where in config.listen:
        try:
            log.info("listens on %s", server.listen(where))
        except OSError as error:
            raise AuthorityError(
                f"cannot listen on {where}: {error.strerror or error}; correct the setting `listen`"
            ) from None


async def _serve(
    config: ServiceConfig, signer: LiveSigner, keys: StateKeys, server: Server, endpoint: Endpoint
) -> None:
    """Until it is cancelled. Raises AuthorityError when it cannot begin."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(endpoint.stop)
        stack.push_async_callback(server.stop)
        lock = await _become_writer(config.state)
        stack.callback(lock.release)
        office = await Office.begin(config, stack)
        service = Service(
            signer, keys.nodes, office.recorder, [TokenProof(office.recorder, utc_now)], office.audit, office.queue,
            limits=config.limits, lifetimes=config.lifetimes, now=utc_now, clock=time.monotonic,
        )  # fmt: skip
        # What was begun is answered before anything that it needs is closed.
        stack.push_async_callback(server.stop)
        server.service = service
        log.info("issues from now on, pid %d", os.getpid())
        async with asyncio.TaskGroup() as group:
            group.create_task(_follow(followed(config.directories.mesh), service, endpoint))
            group.create_task(endpoint.follow(service))
            group.create_task(watch(signer, office.audit, office.audit_file, service))
            group.create_task(prune(office.recorder, config.retention))


@dataclass(frozen=True, slots=True)
class Office:
    """What a service that issues works with: its audit log, its store, and who signs."""

    audit_file: AuditFile
    audit: Audit
    recorder: Recorder
    queue: Queue

    @classmethod
    async def begin(cls, config: ServiceConfig, stack: contextlib.AsyncExitStack) -> Self:
        """Each is closed with the stack, the last one first. Raises AuthorityError."""
        audit_file = _open_audit(config)
        stack.callback(audit_file.close)
        audit = Audit(audit_file, utc_now, time.monotonic)
        stack.callback(audit.settle, all_of_them=True)
        recorder = Recorder(utc_now)
        await recorder.open(config.state)
        stack.push_async_callback(recorder.close)
        queue = Queue(_SIGNERS, config.limits.waiting)
        stack.push_async_callback(queue.close)
        return cls(audit_file, audit, recorder, queue)


def _open_audit(config: ServiceConfig) -> AuditFile:
    """Raises AuthorityError."""
    try:
        return AuditFile(config.audit)
    except OSError as error:
        raise AuthorityError(
            f"cannot write the audit log {config.audit}: {error.strerror or error}; correct the setting `audit`"
        ) from None


async def _follow_key(state: Path, keys: StateKeys, server: Server) -> None:
    """Has new connections use the service's key that is there now, whether this process issues or stands by."""
    path, seen, problem = state / SERVICE, "", ""
    while True:
        try:
            status = await asyncio.to_thread(path.stat)
            stamp = f"{status.st_ino} {status.st_mtime_ns}"
            if stamp != seen:
                found = await asyncio.to_thread(OwnKey.read, path)
                if found.pin != keys.pin:
                    keys = replace(keys, service=found)
                    server.use(server_context(keys))
                    log.info("the service's key has the SHA-256 %s from now on", keys.pin)
                seen = stamp
            problem = ""
        except (AuthorityError, OSError) as error:
            line = str(error) if isinstance(error, AuthorityError) else f"cannot read {path}: {error.strerror or error}"
            if line != problem:
                log.warning("the service goes on with the key that it has: %s", line)
            problem = line
        except Exception as error:  # nobody would miss a task that has ended
            line = f"cannot use {path}: {type(error).__name__}"
            if line != problem:
                log.exception("the service goes on with the key that it has")
            problem = line
        if server.service is not None:
            if problem:
                server.service.problems["key"] = f"the service goes on with the key that it has: {problem}"
            else:
                server.service.problems.pop("key", None)
        await asyncio.sleep(_KEY_S)


async def _become_writer(state: Path) -> LockFile:
    """Waits as long as another process has the store."""
    told = False
    while True:
        try:
            return LockFile(state / WRITER_LOCK)
        except AlreadyLocked as error:
            if not told:
                log.info("stands by: the process %s has the store in %s", error.pid, state)
                told = True
        except OSError as error:
            raise AuthorityError(f"cannot use {state}: {error.strerror or error}; correct its owner") from None
        await asyncio.sleep(_TAKE_OVER_S)


async def _follow(source: Source, service: Service, endpoint: Endpoint) -> None:
    """Has the service decide by the present mesh state. One that is wrong leaves the last good one."""
    async for item in source.changes():
        if isinstance(item, MeshStateError):
            if item.used:
                continue  # nothing that decides here
            log.warning("%s", item)
            service.problems["mesh"] = f"the mesh state {source.describe()}: {str(item).splitlines()[0]}"
        else:
            service.residents = await asyncio.to_thread(Residents.of, item)
            endpoint.take(item)
            service.problems.pop("mesh", None)


async def watch(signer: HeldSigner, audit: Audit, audit_file: AuditFile, service: Service) -> None:
    """Looks at what changes by itself: the CA directory, the audit log."""
    while True:
        why = signer.why
        await service.refresh()
        if signer.why not in (None, why):
            log.warning("%s is not used as it is: %s", signer.place, signer.why)
        for _ in range(round(_REFRESH_S / _SETTLE_S)):
            audit.settle()
            if audit_file.failure is not None:
                service.problems["audit"] = audit_file.failure
            else:
                service.problems.pop("audit", None)
            await asyncio.sleep(_SETTLE_S)


async def prune(recorder: Recorder, retention: timedelta) -> None:
    """Forgets what ended long ago, a little at a time."""
    kept: Retention | None = None
    while True:
        try:
            if kept is None:
                kept = Retention(retention, await recorder.ask(Ledger.newest), utc_now, time.monotonic)
            while await recorder.ask(functools.partial(Ledger.prune, before=kept.before())):
                pass
        except AuthorityError as error:
            log.error("%s", error)
        await asyncio.sleep(_PRUNE_S)
