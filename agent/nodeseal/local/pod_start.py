"""What is done at a pod's start, as the agent's configuration says it: the network plugin, and where it is installed.

    cni:
      config_directory: /etc/cni/net.d   # the list of plugins: the runtime's network configuration
      binary_directory: /opt/cni/bin     # where the runtime looks for plugins
      on_failure: closed                 # a pod that cannot be enrolled does not start; open: it starts all the same;
                                         # by-namespace: closed for those of namespaces that are enrolled
      wait: published                    # until when a pod waits; settled: until `settle` has passed as well
      open_namespaces: [kube-system, nodeseal-system]   # for whose pods it is open in any case

Without `cni` no plugin is installed, and one that an agent of this run directory had installed is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nodeseal.contracts.pod_start import WithoutEnrolment
from nodeseal.documents.schema import Fields, read_name

DEFAULT_CONFIG_DIRECTORY = Path("/etc/cni/net.d")
DEFAULT_BINARY_DIRECTORY = Path("/opt/cni/bin")
DEFAULT_OPEN_NAMESPACES = ("kube-system", "nodeseal-system")
"""The cluster's own name service, and the service that issues certificates: without them no agent becomes ready."""
_NAMESPACES_MAX = 100


class Wait(StrEnum):
    """Until when a pod's start waits."""

    PUBLISHED = "published"
    """It is captured, and published to the other nodes."""
    SETTLED = "settled"
    """They have had the time to learn of it: the workload refuses plaintext from enrolled peers."""


@dataclass(frozen=True, slots=True)
class PodStart:
    """See the module's text."""

    config_directory: Path = DEFAULT_CONFIG_DIRECTORY
    binary_directory: Path = DEFAULT_BINARY_DIRECTORY
    on_failure: WithoutEnrolment = WithoutEnrolment.CLOSED
    open_namespaces: tuple[str, ...] = DEFAULT_OPEN_NAMESPACES
    wait: Wait = Wait.PUBLISHED


def read_pod_start(fields: Fields, name: str, base: Path) -> PodStart | None:
    """The field `name`, a mapping; None if it is absent. Problems are noted with the fields."""
    node = fields.node(name, "a mapping of settings of the network plugin", required=False)
    if node is None:
        return None
    inner = Fields(fields.problems, node, fields.at(name))
    items = inner.items("open_namespaces", "a list of namespaces", required=False)
    found = PodStart(
        base / inner.text("config_directory", str(DEFAULT_CONFIG_DIRECTORY), expected="a path"),
        base / inner.text("binary_directory", str(DEFAULT_BINARY_DIRECTORY), expected="a path"),
        inner.choice("on_failure", WithoutEnrolment.CLOSED),
        tuple(read_name(inner.problems, one, inner.at(f"open_namespaces[{index}]")) for index, one in enumerate(items))
        if inner.has("open_namespaces")
        else DEFAULT_OPEN_NAMESPACES,
        inner.choice("wait", Wait.PUBLISHED),
    )
    if len(items) > _NAMESPACES_MAX:
        where = inner.at("open_namespaces")
        inner.problems.add(inner.line_of("open_namespaces"), where, "at most 100 namespaces", f"{len(items)}")
    inner.close()
    return found
