"""What commands print with `-o json`, for users' scripts: the keys are a contract.

A command that fails prints {"errors": [...]}, one line each, and says the same on standard error.
"""

from __future__ import annotations

from msgspec import Struct

from nodeseal.contracts import api


class NodeStatuses(Struct, frozen=True):
    """`nodeseal status`."""

    nodes: list[api.Status] = []
    """One for each node that answered, with `run_dir` as it was asked for."""
    errors: list[str] = []
    """One line for each node that did not answer."""


class NodeProblem(api.ProblemRow, frozen=True):
    """Something that is wrong with a node, or that no agent answers."""

    node: str | None = None
    """The node's name; null when no agent answers."""


class StatusCheck(Struct, frozen=True):
    """`nodeseal status --check`."""

    level: str = "ok"
    """ "ok", "warning" or "error": the worst of the problems."""
    problems: list[NodeProblem] = []
    """The worst first."""


class NodeConnection(api.ConnectionRow, frozen=True):
    """A connection, and the node that it is on."""

    node: str = ""
    run_dir: str = ""
    """The node's run directory."""


class NodeRefused(api.RefusedRow, frozen=True):
    """Refusals, and the node that they are on."""

    node: str = ""
    run_dir: str = ""
    """The node's run directory."""


class NodeConnections(Struct, frozen=True):
    """`nodeseal connections`."""

    connections: list[NodeConnection] = []
    refused: list[NodeRefused] = []
    """Peers that were refused in the last day; none with --live."""
    errors: list[str] = []
    """What could not be listed, and one line for each node that did not answer."""


class NodeUpgrade(api.UpgradedCore, frozen=True):
    """A new core, and the node that it is on."""

    run_dir: str = ""
    """The node's run directory."""


class NodeUpgrades(Struct, frozen=True):
    """`nodeseal upgrade-core`."""

    nodes: list[NodeUpgrade] = []
    errors: list[str] = []
    """One line for each node whose core was not replaced."""
