"""The model as JSON-able dicts, for the way from the agent to the core process.

    {"trust_domain": "example.org",
     "workloads": [{"namespace", "name", "service_account", "node", "addresses", "netns", "wanted", "mode", "phase"}],
         for a process of its node, "host": {"cgroup": "/system.slice/vector.service", "ports": [[80, 90]]}
         where there is any, "exclude": {"inbound": {"ports": [[80, 90]], "networks": ["10.0.0.0/8"]}, "outbound": {}}
         and "limits": {"connections": 100}, unless it is "closed", "on_failure"
     "removed_workloads": ["ns/name"],
     "services": [{"namespace", "name", "addresses", "ports": [[80, 8080]], "endpoints": ["ns/name"]}],
     "removed_services": ["ns/name"]}

Lists that are empty are left out, and so are limits that are not changed. Both ends are the same release of nodeseal
in all but an upgrade, which the control protocol's version guards: an unknown key is passed over, a missing one is an
error.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_network
from sys import intern
from typing import Any

from nodeseal.mesh.address import Address, AddressError, parse_address
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.limits import LIMIT_NAMES, UNCHANGED, LimitChanges
from nodeseal.mesh.model import (
    MeshDifference,
    MeshError,
    Mode,
    OnFailure,
    Phase,
    Service,
    ServicePort,
    Workload,
    WorkloadName,
)

# Looking a member up in its class takes ten times as long.
_MODES = {mode.value: mode for mode in Mode}
_PHASES = {phase.value: phase for phase in Phase}


def difference_to_wire(difference: MeshDifference) -> dict[str, object]:
    """See the module's text for the keys."""
    wire: dict[str, object] = {"trust_domain": difference.trust_domain}
    if difference.workloads:
        wire["workloads"] = [_workload_to_wire(workload) for workload in difference.workloads]
    if difference.removed_workloads:
        wire["removed_workloads"] = [str(name) for name in difference.removed_workloads]
    if difference.services:
        wire["services"] = [_service_to_wire(service) for service in difference.services]
    if difference.removed_services:
        wire["removed_services"] = [str(name) for name in difference.removed_services]
    return wire


def difference_from_wire(data: Mapping[str, object]) -> MeshDifference:
    """The reverse. Raises MeshError for anything that difference_to_wire does not make."""
    try:
        return MeshDifference(
            trust_domain=_text(data["trust_domain"]),
            workloads=tuple(_workload_from_wire(item) for item in _list(data, "workloads")),
            removed_workloads=_names(_list(data, "removed_workloads")),
            services=tuple(_service_from_wire(item) for item in _list(data, "services")),
            removed_services=_names(_list(data, "removed_services")),
        )
    except KeyError as error:
        raise MeshError(f"mesh on the wire: {error.args[0]!r} is missing") from None
    except (TypeError, ValueError, AttributeError, AddressError) as error:
        raise MeshError(f"mesh on the wire: {error}") from None


def _workload_to_wire(workload: Workload) -> dict[str, object]:
    wire: dict[str, object] = {
        "namespace": workload.key.namespace,
        "name": workload.key.name,
        "service_account": workload.service_account,
        "node": workload.node,
        "addresses": [str(address) for address in workload.addresses],
        "netns": workload.netns,
        "wanted": workload.wanted,
        "mode": workload.mode,
        "phase": workload.phase,
    }
    if workload.exclude:
        wire["exclude"] = _exclusions_to_wire(workload.exclude)
    if workload.on_failure is not OnFailure.CLOSED:
        wire["on_failure"] = workload.on_failure
    if workload.limits != UNCHANGED:
        wire["limits"] = workload.limits.as_dict()
    if (host := workload.host) is not None:
        wire["host"] = {"cgroup": host.cgroup, "ports": _ports_to_wire(host.ports)}
    return wire


def _workload_from_wire(item: Mapping[str, Any]) -> Workload:
    netns, wanted = item["netns"], item["wanted"]
    if not isinstance(wanted, bool):
        raise TypeError(f"wanted is {wanted!a}, not a truth value")
    return Workload(
        key=WorkloadName(_shared(item["namespace"]), _text(item["name"])),
        service_account=_shared(item["service_account"]),
        node=_shared(item["node"]),
        addresses=_addresses(item["addresses"]),
        netns=None if netns is None else _text(netns),
        wanted=wanted,
        mode=_MODES.get(item["mode"]) or Mode(item["mode"]),
        phase=_PHASES.get(item["phase"]) or Phase(item["phase"]),
        exclude=_exclusions_from_wire(item["exclude"]) if "exclude" in item else NO_EXCLUSIONS,
        on_failure=OnFailure(item.get("on_failure", OnFailure.CLOSED)),
        limits=_limits_from_wire(item["limits"]) if "limits" in item else UNCHANGED,
        host=_host_from_wire(item["host"]) if "host" in item else None,
    )


def _host_from_wire(item: Mapping[str, Any]) -> HostPlace:
    return HostPlace(_text(item["cgroup"]), _ports_from_wire(item["ports"]))


def _ports_to_wire(ports: Iterable[PortRange]) -> list[list[int]]:
    return [[item.first, item.last] for item in ports]


def _ports_from_wire(items: Iterable[Any]) -> tuple[PortRange, ...]:
    return tuple(PortRange(_port(first), _port(last)) for first, last in items)


def _exclusions_to_wire(exclude: Exclusions) -> dict[str, object]:
    """See the module's text; both directions are always there."""

    def direction(excluded: Excluded) -> dict[str, object]:
        return {
            "ports": _ports_to_wire(excluded.ports),
            "networks": [str(network) for network in excluded.networks],
        }

    return {"inbound": direction(exclude.inbound), "outbound": direction(exclude.outbound)}


def _exclusions_from_wire(item: Mapping[str, Any]) -> Exclusions:
    def direction(excluded: Mapping[str, Any]) -> Excluded:
        return Excluded(
            _ports_from_wire(excluded["ports"]),
            tuple(ip_network(_text(network)) for network in excluded["networks"]),
        )

    return Exclusions(direction(item["inbound"]), direction(item["outbound"]))


def _limits_from_wire(item: Mapping[str, Any]) -> LimitChanges:
    values = {name: item[name] for name in LIMIT_NAMES if name in item}
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise TypeError(f"{value!a} is not a limit of {name}")
    return LimitChanges(**values)


def _service_to_wire(service: Service) -> dict[str, object]:
    return {
        "namespace": service.key.namespace,
        "name": service.key.name,
        "addresses": [str(address) for address in service.addresses],
        "ports": [[pair.port, pair.target_port] for pair in service.ports],
        "endpoints": [str(name) for name in service.endpoints],
    }


def _service_from_wire(item: Mapping[str, Any]) -> Service:
    return Service(
        key=WorkloadName(_shared(item["namespace"]), _text(item["name"])),
        addresses=_addresses(item["addresses"]),
        ports=tuple(ServicePort(_port(port), _port(target)) for port, target in item["ports"]),
        endpoints=_names(item["endpoints"]),
    )


def _names(items: Iterable[Any]) -> tuple[WorkloadName, ...]:
    return tuple(WorkloadName.parse(_text(item)) for item in items)


def _list(data: Mapping[str, object], key: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise TypeError(f"{key} is not a list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!a} is not a text")
    return value


def _shared(value: object) -> str:
    # Few different ones, repeated by every workload: one object each keeps the core process small.
    return intern(_text(value))


def _addresses(value: object) -> tuple[Address, ...]:
    if not isinstance(value, list):
        raise TypeError("addresses is not a list")
    if len(value) == 1:
        return (_address(value[0]),)
    addresses = tuple(_address(item) for item in value)
    if len(addresses) != 2 or addresses[0].version == addresses[1].version:
        raise TypeError(f"addresses has {value!a}, not one or two of different families")
    return addresses


def _address(value: object) -> Address:
    text = _text(value)
    try:
        # Most are: three times as fast as trying every form.
        return IPv4Address(text)
    except ValueError:
        return parse_address(text)


def _port(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise TypeError(f"{value!a} is not a port")
    return value
