"""The certificate service's process in a cluster of Kubernetes: `nodeseal ca serve` with the setting `kubernetes`.

How it works. Any number of them run at a time, all issue, and none knows of another: what they have to share is in the
cluster. The CA is in a Secret, which the first one makes; nodes prove themselves by their pods' tokens; the pods say
who may have what. So nothing has to outlive a pod: what each has issued is in its own store, which goes with its pod,
and in its audit log, which goes to standard output for whoever collects that.

The key of its own TLS is in memory and has a certificate of the CA. Agents verify it by the trust anchors, which are in
a ConfigMap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import time
from datetime import datetime

from nodeseal import __version__
from nodeseal.authority import store
from nodeseal.authority.bound_pods import Agents, BoundPods
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.pod_proof import ApiPods, PodProof
from nodeseal.authority.secret_signer import SecretSigner
from nodeseal.authority.server import Server
from nodeseal.authority.service import Service
from nodeseal.authority.service_config import ClusterConfig, ServiceConfig
from nodeseal.authority.signer import Signer
from nodeseal.authority.tls import fresh_context, waiting_context
from nodeseal.clock import utc_now
from nodeseal.contracts.authority import BUNDLE_KEY, STANDBY, Health
from nodeseal.daemon.ca_cluster_state import ClusterState
from nodeseal.daemon.ca_service import Office, listen, prune, watch
from nodeseal.kubernetes.access import Access, AccessError
from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.kept import CONFIG_MAPS, config_map
from nodeseal.kubernetes.objects import Key

log = logging.getLogger("nodeseal.ca")

FOLLOW_S = 5.0
"""So often the Secret is looked at, and what else changes by itself."""
GOODBYE_S = 5.0
"""So long it goes on serving after it was told to go, and says that it is not ready: until nobody is sent here any
more."""
_BUNDLE_S = 60.0


async def serve(config: ServiceConfig, cluster: ClusterConfig) -> None:
    """Until SIGTERM or SIGINT. Raises AuthorityError when it cannot begin."""
    try:
        api = Api(Access.in_cluster(os.environ), f"nodeseal-ca/{__version__}")
    except AccessError as error:
        raise AuthorityError(str(error)) from None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(api.close)
        waiting = Health(state=STANDBY, since=utc_now(), trust_domain=cluster.trust_domain, version=__version__)
        server = Server(waiting_context(utc_now()), waiting, config.limits.connections)
        stack.push_async_callback(server.stop)
        listen(server, config)
        office = await Office.begin(config, stack)
        signer = _signer(api, cluster)
        pods = BoundPods(time.monotonic)
        agents = Agents(cluster.namespace, cluster.agents, cluster.audience)
        proof = PodProof(agents, pods, ApiPods(api, cluster.audience), utc_now, time.monotonic)
        service = Service(
            signer, None, office.recorder, [proof], office.audit, office.queue,
            limits=config.limits, lifetimes=config.lifetimes, now=utc_now, clock=time.monotonic,
        )  # fmt: skip
        service.look = proof.look
        # What was begun is answered before anything that it needs is closed.
        stack.push_async_callback(server.stop)
        server.service = service
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as group:
                group.create_task(ClusterState(api, pods, service, cluster).follow())
                group.create_task(_follow_ca(signer, server, config))
                group.create_task(_publish(api, signer, service, (cluster.namespace, cluster.bundle)))
                group.create_task(watch(signer, office.audit, office.audit_file, service))
                group.create_task(prune(office.recorder, config.retention))
                work = asyncio.current_task()
                assert work is not None
                going = group.create_task(_until_told(server))
                going.add_done_callback(lambda _task: work.cancel())
        log.info("the certificate service goes")


async def _until_told(server: Server) -> None:
    """Returns when it is to end: a while after it was told."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()
    server.going = "it is about to end"
    await asyncio.sleep(GOODBYE_S)


def _signer(api: Api, cluster: ClusterConfig) -> SecretSigner:
    root = (cluster.namespace, cluster.root_secret) if cluster.make else None
    return SecretSigner(api, (cluster.namespace, cluster.secret), root, cluster.trust_domain, utc_now)


async def _follow_ca(signer: SecretSigner, server: Server, config: ServiceConfig) -> None:
    """Has the service sign by what is in the Secret now, and show a certificate of that."""
    shown: tuple[Signer, datetime] | None = None
    told: str | None = None
    while True:
        await signer.follow()
        if signer.why != told and signer.why is not None:
            log.warning("%s is not used as it is: %s", signer.place, signer.why)
        told = signer.why
        found, now = signer.signer, utc_now()
        if found is not None and (shown is None or shown[0] is not found or now >= shown[1]):
            lifetime = config.lifetimes.workload
            try:
                server.use(await asyncio.to_thread(fresh_context, found, lifetime, now))
                # For `nodeseal ca status` beside it.
                await asyncio.to_thread(store.write, config.state, BUNDLE_KEY, found.bundle_pem.encode())
                shown = found, now + min(lifetime, found.not_after - now) / 2
            except (AuthorityError, OSError, ssl.SSLError) as error:
                log.warning("the service goes on with the certificate that it shows: %s", error)
        await asyncio.sleep(FOLLOW_S if found is not None else 1.0)


async def _publish(api: Api, signer: SecretSigner, service: Service, key: Key) -> None:
    """Has the trust anchors in the ConfigMap, whoever changes it."""
    published, looked = "", 0.0
    while True:
        found = signer.signer
        now = time.monotonic()
        if found is not None and (found.bundle_pem != published or now - looked >= _BUNDLE_S):
            try:
                await _put(api, key, found.bundle_pem)
                published, looked = found.bundle_pem, now
                service.problems.pop("bundle", None)
            except (AwayError, RefusedError, AccessError, ValueError) as error:
                problem = f"the trust anchors cannot be put into the ConfigMap {'/'.join(key)}: {error}"
                if service.problems.get("bundle") != problem:
                    log.warning("%s", problem)
                service.problems["bundle"] = problem
        await asyncio.sleep(FOLLOW_S if published else 0.2)


async def _put(api: Api, key: Key, anchors: str) -> None:
    """Raises AwayError, RefusedError, AccessError, ValueError."""
    present = await api.get(CONFIG_MAPS, key)
    if present is None:
        try:
            await api.create(CONFIG_MAPS, key[0], config_map(key, {BUNDLE_KEY: anchors}))
            log.info("the trust anchors are in the ConfigMap %s", "/".join(key))
            return
        except RefusedError as error:
            if not error.exists:
                raise
    elif (present.data or {}).get(BUNDLE_KEY) == anchors:
        return
    await api.merge(CONFIG_MAPS, key, {"data": {BUNDLE_KEY: anchors}})
