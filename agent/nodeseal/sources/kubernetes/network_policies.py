"""Which pods must not be enrolled because of a NetworkPolicy. Pure.

A NetworkPolicy judges what it sees: packets to and from a pod's addresses and ports. Between enrolled pods these are of
tunnels, which all go to port 15008. So a policy that names TCP ports does not fit an enrolled pod, in one of two ways:

* 15008 is none of its ports. What it allows in plaintext is cut off in a tunnel.
* 15008 is one of them. Then whoever may reach it reaches every port of the pod, whatever the policy says of those.

Until tunnels are judged by NetworkPolicies, such a pod is left as it is, and named; the annotation
`nodeseal.io/network-policies: ignored` enrols it all the same. Rules that name no port stay true:
whom they let in to everything may open tunnels. So do rules for UDP and SCTP alone, and those that nobody passes.

Semantics: https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from nodeseal.kubernetes.objects import KubernetesObject, Resource
from nodeseal.mesh.address import HBONE_PORT

_TCP = "TCP"
_LAST_PORT = 65535
_MOST_NAMED = 3


class LabelRequirement(Struct, frozen=True):
    """One of matchExpressions."""

    key: str
    operator: str
    values: list[str] = field(default_factory=list)

    def holds(self, labels: Mapping[str, str]) -> bool:
        """An operator that is not known holds: then the policy counts, which is the safe side."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
        return True


class LabelSelector(Struct, frozen=True, rename="camel"):
    """An empty one selects everything."""

    match_labels: dict[str, str] = field(default_factory=dict)
    match_expressions: list[LabelRequirement] = field(default_factory=list)

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether all that is asked for holds."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            one.holds(labels) for one in self.match_expressions
        )


class PolicyPort(Struct, frozen=True, rename="camel"):
    """A port that a rule allows, or a range."""

    protocol: str = _TCP
    port: int | str | None = None
    """A number, or the name of a container's port."""
    end_port: int | None = None

    @property
    def all(self) -> bool:
        """Every port of the protocol."""
        return self.port is None or (isinstance(self.port, int) and self.port <= 1 and self.end_port == _LAST_PORT)

    def has(self, number: int) -> bool:
        """By number: what a name stands for in each pod is not looked up."""
        if not isinstance(self.port, int):
            return False
        return self.port <= number <= (self.end_port or self.port)


class PolicyRule(Struct, frozen=True):
    """What is let through, whoever the peers are; without `ports` at every port."""

    ports: list[PolicyPort] = field(default_factory=list)

    @property
    def tcp_ports(self) -> tuple[PolicyPort, ...]:
        """Those that it allows and others of TCP not. Empty: it allows all of TCP, or nothing of it."""
        of_tcp = tuple(one for one in self.ports if one.protocol == _TCP)
        return () if any(one.all for one in of_tcp) else of_tcp


class PolicySpec(Struct, frozen=True, rename="camel"):
    """Which pods, and what is let through to them and from them."""

    pod_selector: LabelSelector = field(default_factory=LabelSelector)
    policy_types: list[str] = field(default_factory=list)
    """ "Ingress", "Egress". The API server fills it in."""
    ingress: list[PolicyRule] = field(default_factory=list)
    egress: list[PolicyRule] = field(default_factory=list)


class NetworkPolicy(KubernetesObject, frozen=True):
    """See the module's text."""

    spec: PolicySpec = field(default_factory=PolicySpec)


NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", NetworkPolicy)


def obstacles(labels: Mapping[str, str], policies: Iterable[NetworkPolicy]) -> tuple[str, ...]:
    """Why a pod with these labels must not be enrolled, one line a policy. `policies`: its namespace's."""
    found = (
        line
        for policy in sorted(policies, key=lambda one: one.key)
        if policy.spec.pod_selector.selects(labels)
        for line in _of(policy)
    )
    return tuple(found)


def _of(policy: NetworkPolicy) -> Iterable[str]:
    spec = policy.spec
    for kind, rules, verb in (("Ingress", spec.ingress, "reached at"), ("Egress", spec.egress, "let out to")):
        if kind not in spec.policy_types:
            continue
        named = [port for rule in rules for port in rule.tcp_ports]
        if not named:
            continue
        where = f"NetworkPolicy {policy.metadata.namespace}/{policy.metadata.name}"
        ports = ", ".join(_shown(port) for port in named[:_MOST_NAMED]) + (", ..." if len(named) > _MOST_NAMED else "")
        if any(port.has(HBONE_PORT) for port in named):
            why = f"who may open tunnels (port {HBONE_PORT}) could reach every port"
        else:
            why = f"tunnels (port {HBONE_PORT}) would be blocked"
        yield f"{where} says at which ports it may be {verb} ({ports}): {why}"


def _shown(port: PolicyPort) -> str:
    return f"{port.port}-{port.end_port}" if port.end_port is not None else str(port.port)
