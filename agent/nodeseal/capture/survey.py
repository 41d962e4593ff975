"""A workload's network namespace as capture finds it: whether the workload can be captured there."""

from __future__ import annotations

from collections.abc import Container, Iterable

from nodeseal.capture.errors import AddressInUseError, AddressNotFoundError, AddressNotReadyError, CaptureError
from nodeseal.capture.workload import CaptureTarget
from nodeseal.linux import rtnetlink
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.linux.rtnetlink import Survey
from nodeseal.mesh.address import Address
from nodeseal.mesh.workload import primaries_of


def near_of(
    target: CaptureTarget, survey: Survey, before: Iterable[Address], *, further: Container[int]
) -> list[Address]:
    """For each family that can be captured the address that stands for the target: the first that it has.

    `before`: what this has said before, of which no family is dropped. `further`: families in which any address of the
    namespace will do: what is dialled there may be a peer, and must not go there in plaintext.
    """
    near = {address.version: address for address in before}
    near |= {address.version: address for address in primaries_of(target.addresses)}
    for address in sorted(survey.global_addresses - survey.tentative - survey.duplicate, key=str):
        if address.version in further and (address.version == 4 or survey.ipv6_on_loopback):
            near.setdefault(address.version, address)
    return [near[version] for version in sorted(near)]


def in_place(target: CaptureTarget, survey: Survey) -> frozenset[Address]:
    """The target's addresses that the namespace has, and that can be used there."""
    return survey.addresses.intersection(target.addresses) - survey.tentative - survey.duplicate


def survey_for(target: CaptureTarget, namespace: NetworkNamespace) -> Survey:
    """What is in the namespace. Raises AddressNotFoundError, AddressInUseError, AddressNotReadyError, CaptureError for
    what stands in the way of capture.
    """
    survey = namespace.run(rtnetlink.survey)
    # Of its further addresses some may come and go: who lacks one is told so, and has the others.
    for address in primaries_of(target.addresses):
        if address not in survey.addresses:
            raise AddressNotFoundError(
                f"address not found: {address} of {target.name} is on no interface in {namespace.path}; correct the "
                "workload's address or netns"
            )
        if address in survey.duplicate:
            raise AddressInUseError(
                f"address in use: {address} of {target.name} is another host's as well (duplicate address detection in "
                f"{namespace.path} found it); give one of the two another address"
            )
        if address in survey.tentative:
            raise AddressNotReadyError(
                f"address not ready: {address} of {target.name} is still looked for among its neighbours (duplicate "
                f"address detection in {namespace.path}); this takes a second or two"
            )
    if not survey.loopback_up:
        raise CaptureError(f"lo is down in {namespace.path}: captured connections go by it; ip link set lo up")
    if not survey.ipv6_on_loopback and any(address.version == 6 for address in target.addresses):
        raise CaptureError(
            f"IPv6 is off on lo in {namespace.path}: captured connections go by it; "
            "sysctl net.ipv6.conf.lo.disable_ipv6=0"
        )
    return survey
