"""A workload's network namespace as capture finds it: whether the workload can be captured there."""

from __future__ import annotations

from nodeseal.capture.errors import AddressInUseError, AddressNotFoundError, AddressNotReadyError, CaptureError
from nodeseal.capture.workload import CaptureTarget
from nodeseal.linux import rtnetlink
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.linux.rtnetlink import Survey
from nodeseal.mesh.address import Address


def survey_for(target: CaptureTarget, namespace: NetworkNamespace) -> Survey:
    """What is in the namespace. Raises AddressNotFoundError, AddressInUseError, AddressNotReadyError, CaptureError for
    what stands in the way of capture.
    """
    survey = namespace.run(rtnetlink.survey)
    for address in target.addresses:
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


def uncaptured(target: CaptureTarget, survey: Survey) -> list[Address]:
    """The namespace's addresses of families in which the target has none, but for those that mean nothing elsewhere."""
    versions = {address.version for address in target.addresses}
    return sorted(
        (
            address
            for address in survey.addresses
            if address.version not in versions and not (address.is_loopback or address.is_link_local)
        ),
        key=str,
    )
