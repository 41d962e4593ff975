"""What can go wrong with a measurement."""

from __future__ import annotations


class BenchError(Exception):
    """A measurement cannot be made, or is not to be trusted; one line: what, where, what to do."""


class DescriptionError(BenchError):
    """The description file of an external peer cannot be used."""
