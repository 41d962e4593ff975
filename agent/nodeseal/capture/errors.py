"""What can go wrong with capture, as seen by its user."""

from __future__ import annotations


class CaptureError(Exception):
    """Capture could not be set up or taken down. The text is one line: what, where, what to do."""


class AddressNotFoundError(CaptureError):
    """The workload's address is on no interface of its network namespace."""
