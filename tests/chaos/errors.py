"""What can keep a chaos run from being made; what it finds is no error, but a part of its report."""


class ChaosError(Exception):
    """The run cannot go on; one line."""
