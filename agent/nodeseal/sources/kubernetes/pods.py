"""What a pod of this node is in the mesh model. Pure.

Its settings are decided in wanted.py, its place is found in places.py. It is a workload from the moment that it has an
address until its containers have ended: init containers and sidecars have connections too, and so has what is
terminating.

Its addresses are those that the kubelet tells (podIPs), and those that Multus notes in an annotation for its further
interfaces. Whoever may annotate the pod may note others there: so of a pod that is enrolled only addresses count that
are in its namespace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec
from msgspec import Struct, field

from nodeseal.documents.schema import unusable
from nodeseal.kubernetes.objects import Pod
from nodeseal.mesh.address import MESH_PORTS, Address, AddressError, parse_address
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, PortRange
from nodeseal.mesh.host import OWN_NAMESPACE, HostPlace
from nodeseal.mesh.workload import MOST_ADDRESSES, Workload, WorkloadName, primaries_of
from nodeseal.sources.kubernetes.places import Place
from nodeseal.sources.kubernetes.wanted import EXCLUDE, Settings

MULTUS = "k8s.v1.cni.cncf.io/network-status"
"""The annotation in which Multus notes the networks of a pod.

https://github.com/k8snetworkplumbingwg/multi-net-spec has its form."""
MIRROR, STATIC = "kubernetes.io/config.mirror", "kubernetes.io/config.hash"
"""Annotations of what stands for a static pod in the API: the latter has the UID that the kubelet knows it by."""
_STATIC_UID = re.compile(r"[0-9a-f]{32}")
_ENDED = frozenset({"Succeeded", "Failed"})
_MULTUS_MAX = 64 * 1024
_DEFAULT_ACCOUNT = "default"


class _Network(Struct):
    ips: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """`workload`: None: it is none now. `problems`: one line each, that somebody has to correct. `waits`: why it is not
    in the mesh yet, or not enrolled, though it is to be: what is not known yet comes by itself."""

    workload: Workload | None
    problems: tuple[str, ...] = ()
    waits: str = ""


def uid_on_node(pod: Pod) -> str:
    """By which the kubelet knows it. (No pod of the API server can have the UID of a static pod.)"""
    meta = pod.metadata
    if MIRROR in meta.annotations and _STATIC_UID.fullmatch(meta.annotations.get(STATIC, "")) is not None:
        return meta.annotations[STATIC]
    return meta.uid


def has_ended(pod: Pod) -> bool:
    """All of its containers have, and its addresses may be another's."""
    return pod.status.phase in _ENDED


def claimed(pod: Pod) -> tuple[Address, ...]:
    """All addresses that are told to be its, by whomever."""
    further, _ = _further(pod, "")
    return tuple(dict.fromkeys((*_usable(one.ip for one in pod.status.pod_ips), *further)))


def workload_of(pod: Pod, settings: Settings, place: Place | None, node: str, told: Iterable[Address] = ()) -> Found:
    """`place`: as far as it is known; one that is to be enrolled needs it. `told`: its addresses by the CNI plugin,
    which knows them before the API server does."""
    addresses = tuple(dict.fromkeys((*_usable(one.ip for one in pod.status.pod_ips), *told)))
    if has_ended(pod) or not addresses:
        return Found(None)
    name = f"pod {pod.metadata.namespace}/{pod.metadata.name}"
    workload = Workload(
        key=WorkloadName(pod.metadata.namespace, pod.metadata.name),
        service_account=pod.spec.service_account_name or _DEFAULT_ACCOUNT,
        node=node,
        addresses=addresses[:MOST_ADDRESSES],
        netns=None,
        wanted=settings.enrol,
        mode=settings.mode,
        exclude=settings.exclude,
        on_failure=settings.on_failure,
        limits=settings.limits,
        connect=settings.connect,
    )
    if pod.spec.host_network:
        return _of_node(pod, workload, place, name)
    if not settings.enrol:
        return Found(workload)
    if place is None or place.of_node:
        gone = pod.metadata.deletion_timestamp is not None
        return Found(None if gone else workload, waits="" if gone else f"no sandbox of it is on the node {node}")
    further, problems = _further(pod, name)
    attributed = [one for one in dict.fromkeys((*addresses, *further)) if one in place.addresses]
    # In a sandbox that was made anew, after a reboot for example: the kubelet has not told its addresses yet.
    astray = ", ".join(str(one) for one in addresses if one not in place.addresses)
    waits = f"its network namespace lacks {astray}" if astray else ""
    if not any(one in place.addresses for one in addresses):
        return Found(None, problems, waits)
    if len(attributed) > MOST_ADDRESSES:
        problems = (*problems, f"{name} has {len(attributed)} addresses: the first {MOST_ADDRESSES} count")
    workload = replace(workload, addresses=tuple(attributed[:MOST_ADDRESSES]), netns=place.netns)
    return Found(workload, problems, waits)


def _of_node(pod: Pod, workload: Workload, place: Place | None, name: str) -> Found:
    """One of the host network: it is known by its cgroup."""
    if not workload.wanted:
        return Found(None)  # the node's addresses are the node's
    if place is None or not place.cgroup:
        if pod.metadata.deletion_timestamp is not None:
            return Found(None)
        where = "no process of it is on the node" if place is None else "its processes are in no cgroup v2 tree"
        return Found(None, waits=where)
    ports = sorted(
        {
            port.container_port
            for container in (*pod.spec.containers, *pod.spec.init_containers)
            for port in container.ports
            if port.protocol == "TCP" and 0 < port.container_port < 65536
        }
    )
    problems = []
    if mesh_ports := [port for port in ports if port in MESH_PORTS]:
        problems.append(f"{name} declares port {mesh_ports[0]} of the node, which is the mesh's own: it does not count")
    if workload.exclude != NO_EXCLUSIONS:
        problems.append(f"{name} is of the host network, for which {EXCLUDE} says nothing")
    return Found(
        replace(
            workload,
            # In one order for all of them, as in documents/workload.py.
            addresses=tuple(sorted(primaries_of(workload.addresses), key=lambda address: address.version)),
            netns=OWN_NAMESPACE,
            exclude=NO_EXCLUSIONS,
            host=HostPlace(place.cgroup, tuple(PortRange(port, port) for port in ports if port not in MESH_PORTS)),
        ),
        tuple(problems),
    )


def _further(pod: Pod, name: str) -> tuple[tuple[Address, ...], tuple[str, ...]]:
    """What Multus notes, and what is wrong with it."""
    text = pod.metadata.annotations.get(MULTUS)
    if text is None:
        return (), ()
    try:
        if len(text) > _MULTUS_MAX:
            raise ValueError("it is too long")
        networks = msgspec.json.decode(text.encode(), type=list[_Network])
    except (ValueError, RecursionError) as error:
        return (), (f"{name}: the annotation {MULTUS} cannot be read, so no address of it counts: {error}",)
    return tuple(_usable(ip for network in networks for ip in network.ips)), ()


def _usable(texts: Iterable[str]) -> Iterator[Address]:
    """Those that are addresses that an application can have."""
    for text in texts:
        try:
            address = parse_address(text)
        except AddressError:
            continue
        if not unusable(address):
            yield address
