"""Which pods are bound to which node now, and what follows from it. Pure: whoever follows them says what changes.

A node proves that it is itself by the token of the agent's pod that runs on it. The API server says whose the token is;
here is what that has to be: for this service, of the agent's service account, bound to a pod and to a node, and that
pod is there now and bound to that node. And a node gets certificates for the service accounts of pods that are bound to
it now, and for no others.

A static pod's mirror names no service account, and has none here: a kubelet can make mirrors in any namespace as it
likes, so that whoever has taken over a node would have the account `default` of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nodeseal.authority.refused import Refused
from nodeseal.contracts.authority import ServiceWord
from nodeseal.kubernetes.objects import Key
from nodeseal.kubernetes.placed import PlacedPod
from nodeseal.kubernetes.tokens import TokenClaims

Account = tuple[str, str]
"""(namespace, service account)"""

FOUND_S = 10.0
"""So long a pod counts that was found before the watch has told of it. The watch has told by then, or is away."""

_FOUND_MOST = 1_000


@dataclass(frozen=True, slots=True)
class Agents:
    """Whose tokens are taken: of this service account, for this audience."""

    namespace: str
    service_account: str
    audience: str


class BoundPods:
    """Belongs to one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: seconds, monotonic."""
        self._clock = clock
        self._pods: dict[Key, PlacedPod] = {}
        self._of_node: dict[str, dict[Account, int]] = {}
        """How many pods of each account are bound to it."""
        self._found: dict[Key, tuple[PlacedPod, float]] = {}
        """Those that were found by asking, the oldest first, and until when they count."""

    def __len__(self) -> int:
        return len(self._pods)

    def put(self, key: Key, pod: PlacedPod | None) -> None:
        """The pod is this from now on; None: there is none of that name."""
        former = self._pods.pop(key, None)
        if former is not None:
            self._count(former, -1)
        if pod is not None and pod.node:
            self._pods[key] = pod
            self._count(pod, 1)
        # What the watch tells may be older than what was found; it will tell that too.

    def found(self, pod: PlacedPod) -> None:
        """The API server was asked, and has it."""
        self._found.pop(pod.key, None)
        self._found[pod.key] = pod, self._clock() + FOUND_S
        while len(self._found) > _FOUND_MOST or next(iter(self._found.values()))[1] <= self._clock():
            del self._found[next(iter(self._found))]

    def at(self, key: Key, uid: str) -> PlacedPod | None:
        """The pod of that name, if it is this very one."""
        for pod in (self._pods.get(key), self._found_at(key)):
            if pod is not None and pod.uid == uid:
                return pod
        return None

    def has(self, node: str, account: Account) -> bool:
        """Whether a pod of this service account is bound to the node."""
        if not account[1]:
            return False
        if account in self._of_node.get(node, ()):
            return True
        return any(
            pod.node == node and pod.account == account and until > self._clock() for pod, until in self._found.values()
        )

    def _found_at(self, key: Key) -> PlacedPod | None:
        pod, until = self._found.get(key, (None, 0.0))
        return pod if until > self._clock() else None

    def _count(self, pod: PlacedPod, more: int) -> None:
        accounts = self._of_node.setdefault(pod.node, {})
        if count := accounts.get(pod.account, 0) + more:
            accounts[pod.account] = count
            return
        del accounts[pod.account]
        if not accounts:
            del self._of_node[pod.node]


def check_claims(agents: Agents, claims: TokenClaims, node: str) -> None:
    """`node`: the one that asks, by its own words. Raises Refused for a token that proves no node, or another one."""
    if agents.audience not in claims.audiences:
        raise Refused(
            ServiceWord.POD_TOKEN_UNTAKEN,
            f"the pod's token is for {_shown(*sorted(claims.audiences)[:3])}, not for the audience "
            f"{agents.audience}; correct the audience of the agent's projected token",
        )
    if (claims.namespace, claims.service_account) != (agents.namespace, agents.service_account):
        raise Refused(
            ServiceWord.POD_TOKEN_OF_ANOTHER_ACCOUNT,
            f"the token is of the service account {_shown(f'{claims.namespace}/{claims.service_account}')}, and agents "
            f"are {agents.namespace}/{agents.service_account}",
        )
    if not claims.pod or not claims.pod_uid or not claims.node:
        raise Refused(
            ServiceWord.POD_TOKEN_UNBOUND,
            "the token is bound to no pod on a node: agents show the one that the kubelet projects into their pod "
            "(Kubernetes 1.30 or later says the node in it)",
        )
    if claims.node != node:
        raise Refused(
            ServiceWord.TOKEN_OF_ANOTHER_NODE,
            f"the token is for the node {_shown(claims.node)}, not for {node!a}; an agent's node is that of its pod "
            "(NODESEAL_NODE)",
        )


def check_pod(claims: TokenClaims, pod: PlacedPod | None) -> None:
    """`pod`: the one of that name and UID, as it is now; None: there is none. Raises Refused."""
    name = f"{claims.namespace}/{claims.pod}"
    if pod is None:
        raise Refused(ServiceWord.POD_GONE, f"the token is of the pod {name} ({claims.pod_uid}), which is no more")
    if pod.node != claims.node:
        raise Refused(
            ServiceWord.POD_GONE,
            f"the token is of the pod {name}, which is bound to the node {pod.node or 'none'}, not to {claims.node}",
        )


def _shown(*texts: str) -> str:
    """What a stranger may have written."""
    return ", ".join(f"{text[:80]!a}" for text in texts) or "nobody"
