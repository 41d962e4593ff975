"""What can go wrong with capture, as seen by its user."""

from __future__ import annotations

from nodeseal.linux.errors import LinuxError


class CaptureError(LinuxError):
    """Capture could not be set up or taken down. The text is one line: what, where, what to do.

    What the machine itself refuses comes through capture as the LinuxError that it is: its text says as much.
    """


class CompilingInterruptedError(CaptureError):
    """The compiler was killed, or did not come to an end: that says nothing about what the machine can do."""


class AddressInUseError(CaptureError):
    """Something else holds the mesh port in the workload's namespace, or another host the workload's address."""


class AddressNotReadyError(CaptureError):
    """The workload's IPv6 address cannot be used yet."""


class AddressNotFoundError(CaptureError):
    """The workload's address is on no interface of its network namespace."""


class CgroupGoneError(CaptureError):
    """The cgroup of a workload that is a process of the node does not exist (any more)."""
