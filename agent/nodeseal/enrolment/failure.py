"""What went wrong with a workload, with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from nodeseal.capture.errors import AddressInUseError, AddressNotFoundError, AddressNotReadyError, CgroupGoneError
from nodeseal.linux.namespace import NamespaceGoneError
from nodeseal.mesh.reasons import WhyNotEnrolled


@dataclass(slots=True)
class Failure:
    """Why a workload is not where it should be, and when the next try is (event loop time)."""

    reason: WhyNotEnrolled
    detail: str
    retry_at: float


def reason_of(error: BaseException) -> WhyNotEnrolled:
    """The word for a failed step."""
    if isinstance(error, NamespaceGoneError):
        return WhyNotEnrolled.NAMESPACE_GONE
    if isinstance(error, CgroupGoneError):
        return WhyNotEnrolled.CGROUP_GONE
    if isinstance(error, AddressInUseError):
        return WhyNotEnrolled.ADDRESS_IN_USE
    if isinstance(error, AddressNotReadyError):
        return WhyNotEnrolled.PENDING
    if isinstance(error, AddressNotFoundError):
        return WhyNotEnrolled.ADDRESS_MISMATCH
    return WhyNotEnrolled.FAILED


def text_of(error: BaseException) -> str:
    """The error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
