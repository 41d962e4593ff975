"""The pods of this node, as they come and go: what each is in the mesh, and when to look at it again.

A pod is decided anew when it, its namespace or a NetworkPolicy there has changed, and when its sandbox is not where it
was. One whose sandbox cannot be found yet, or has other addresses than the API server tells, is looked at again soon,
then less and less often: the kubelet tells what it has done some time after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from nodeseal.kubernetes.objects import Key, Meta, Namespace, Pod
from nodeseal.mesh.address import Address
from nodeseal.mesh.workload import Workload, WorkloadName
from nodeseal.sources.kubernetes import wanted
from nodeseal.sources.kubernetes.network_policies import NetworkPolicy, obstacles
from nodeseal.sources.kubernetes.places import Place, Places
from nodeseal.sources.kubernetes.pods import claimed, has_ended, uid_on_node, workload_of
from nodeseal.sources.kubernetes.wanted import NetworkPolicies, Settings

_FIRST_S, _LONGEST_S = 0.02, 5.0
CHECK_S = 2.0
"""Whether sandboxes are where they were: one stat(2) each."""
WAITS_TOLD_S = 10.0
"""What waits longer is told as a problem."""


@dataclass
class _Known:
    """What is known of a pod beyond its object. Of one UID."""

    uid: str
    place: Place | None = None
    told: tuple[Address, ...] = ()
    """Its addresses by the CNI plugin."""
    delay: float = _FIRST_S
    look_at: float | None = None
    waits_since: float | None = None
    waits: str = ""
    problems: tuple[str, ...] = ()


class Held(Struct, frozen=True):
    """What the last good settings of a pod were read from."""

    uid: str
    namespace: Meta
    pod: Meta

    @property
    def settings(self) -> Settings | None:
        """None never, but for an agent that reads other settings than the one that wrote it."""
        return wanted.wanted(Namespace(self.namespace), Pod(self.pod)).settings


@dataclass
class OwnPods:
    """`pods`, `namespaces` and `policies` are changed in place by whoever follows them. `own_namespace`: nodeseal's,
    which is never enrolled: what issues certificates must be reached without one."""

    node: str
    pods: Mapping[Key, Pod]
    namespaces: Mapping[Key, Namespace]
    policies: Mapping[Key, NetworkPolicy]
    places: Places
    own_namespace: str
    clock: Callable[[], float] = lambda: asyncio.get_running_loop().time()
    held: dict[str, Held] = field(default_factory=dict)
    """By UID: a slip in a label is no wish to leave, not even when the agent starts anew meanwhile."""
    _known: dict[Key, _Known] = field(default_factory=dict)
    _dirty: set[Key] = field(default_factory=set)
    _told: dict[str, tuple[Address, ...]] = field(default_factory=dict)
    """UID -> what the CNI plugin has told, of pods that are not known yet too."""

    def changed(self, keys: Iterable[Key]) -> None:
        """These pods have."""
        self._dirty |= set(keys)

    def surroundings_changed(self, namespaces: Iterable[str]) -> None:
        """Something that concerns all pods of these namespaces has."""
        names = set(namespaces)
        self._dirty |= {key for key in self.pods if key[0] in names}

    def arrived(self, uid: str, netns: str, addresses: tuple[Address, ...]) -> None:
        """A CNI plugin tells of a sandbox that has just been made for the pod that the kubelet knows by this UID."""
        self.places.hint(uid, netns)
        self._told[uid] = addresses
        for key, known in self._known.items():
            if known.uid == uid:
                known.place = None
                self._dirty.add(key)

    def departed(self, uid: str, netns: str) -> None:
        """A CNI plugin tells that a sandbox of the pod goes. Another one may be there already."""
        if self.places.forget(uid, netns):
            self._told.pop(uid, None)
        self._dirty |= {key for key, known in self._known.items() if known.uid == uid}

    def is_judged(self, key: Key) -> bool:
        """Whether it is known what its namespace says of this pod, which may be told before it."""
        return ("", key[0]) in self.namespaces

    def is_wanted(self, key: Key) -> bool:
        """Whether this pod is to be enrolled, by what is known of it now."""
        pod = self.pods[key]
        return self._effective(pod, self._known_of(key, pod))[0].enrol

    def enrolled_namespaces(self) -> frozenset[str]:
        """See Source.enrolled_namespaces."""
        whole = {one.metadata.name for one in self.namespaces.values() if wanted.may_enrol(one)}
        return frozenset(whole | {key[0] for key, pod in self.pods.items() if wanted.asks_itself(pod)})

    def forget_held(self) -> None:
        """Of pods that went while no agent ran. All that there are have to be known."""
        present = {uid_on_node(pod) for pod in self.pods.values()}
        for uid in self.held.keys() - present:
            del self.held[uid]

    def next_look(self) -> float | None:
        """When `refresh` has something to do without anybody's change; None: never."""
        times = [known.look_at for known in self._known.values() if known.look_at is not None]
        return min(times, default=None)

    @property
    def pending(self) -> bool:
        """Whether `refresh` has something to do now."""
        return bool(self._dirty)

    def check_places(self) -> None:
        """Pods whose sandbox is not where it was are looked at anew."""
        self._dirty |= {key for key, known in self._known.items() if known.place is not None and not known.place.holds}

    async def refresh(self) -> dict[WorkloadName, Workload | None]:
        """What may have changed since: each workload as it is now, None for one that is none any more."""
        now = self.clock()
        due = {key for key, one in self._known.items() if one.look_at is not None and one.look_at <= now}
        keys, self._dirty = self._dirty | due, set()
        found: dict[WorkloadName, Workload | None] = {}
        try:
            await self._find_places(keys)
            for key in keys:
                found[WorkloadName(*key)] = self._decide(key)
        except BaseException:
            self._dirty |= keys
            raise
        return found

    def problems(self) -> Iterator[tuple[Pod, str]]:
        """What somebody has to correct, and what waits for long."""
        now = self.clock()
        for key, known in sorted(self._known.items()):
            if (pod := self.pods.get(key)) is None:
                continue
            for text in known.problems:
                yield pod, text
            if known.waits and known.waits_since is not None and now - known.waits_since >= WAITS_TOLD_S:
                yield pod, f"pod {key[0]}/{key[1]} cannot be enrolled as it is to be: {known.waits}"

    async def _find_places(self, keys: Iterable[Key]) -> None:
        missing: dict[str, _Known] = {}
        for key in keys:
            pod = self.pods.get(key)
            if pod is None:
                self._forget(key)
                continue
            known = self._known_of(key, pod)
            known.told = self._told.get(known.uid, ())
            if known.place is not None and not known.place.holds:
                known.place = None
            if self._needs_place(pod, known):
                missing[known.uid] = known
        if missing:
            places = await asyncio.to_thread(self.places.find, list(missing))
            for uid, known in missing.items():
                known.place = places.get(uid)

    def _needs_place(self, pod: Pod, known: _Known) -> bool:
        settings = self._settings_of(pod, known)[0]
        if not settings.enrol or has_ended(pod) or not (pod.status.pod_ips or known.told):
            return False
        # Another address may be that of another sandbox, which is there beside the former one for a moment.
        if known.place is None:
            return True
        if known.place.of_node:
            return not known.place.cgroup
        return not {*claimed(pod), *known.told} <= known.place.addresses

    def _known_of(self, key: Key, pod: Pod) -> _Known:
        uid = uid_on_node(pod)
        known = self._known.get(key)
        if known is None or known.uid != uid:
            self._forget(key)
            known = self._known[key] = _Known(uid)
        return known

    def _forget(self, key: Key) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self.places.forget(known.uid)
            self._told.pop(known.uid, None)
            self.held.pop(known.uid, None)

    def _settings_of(self, pod: Pod, known: _Known) -> tuple[Settings, tuple[str, ...]]:
        """What counts, and what is wrong."""
        namespace = self.namespaces.get(("", pod.metadata.namespace))
        if namespace is None:
            # Its pod may have been told first.
            namespace = Namespace(Meta(name=pod.metadata.namespace))
        if pod.metadata.namespace == self.own_namespace:
            return Settings(), ()
        found = wanted.wanted(namespace, pod)
        settings = found.settings
        if settings is not None:
            self.held[known.uid] = Held(known.uid, namespace.metadata, pod.metadata)
        elif (held := self.held.get(known.uid)) is not None:
            settings = held.settings
        return settings or Settings(), found.problems

    def _effective(self, pod: Pod, known: _Known) -> tuple[Settings, tuple[str, ...]]:
        """The same with what stands against it."""
        settings, problems = self._settings_of(pod, known)
        if not settings.enrol or settings.network_policies is NetworkPolicies.IGNORED:
            return settings, problems
        meta = pod.metadata
        policies = [one for one in self.policies.values() if one.metadata.namespace == meta.namespace]
        against = obstacles(meta.labels, policies)
        if not against:
            return settings, problems
        remedy = (
            f'change it, or annotate the pod or its namespace {wanted.NETWORK_POLICIES}: "ignored", '
            "if its ports need no guarding"
        )
        told = (f"pod {meta.namespace}/{meta.name} is not enrolled: {why}; {remedy}" for why in against)
        return Settings(), (*problems, *told)

    def _decide(self, key: Key) -> Workload | None:
        pod = self.pods.get(key)
        if pod is None:
            return None
        # While places were looked for, another pod may have come by this name: it has been noted for the next time.
        known = self._known_of(key, pod)
        settings, problems = self._effective(pod, known)
        found = workload_of(pod, settings, known.place, self.node, known.told)
        known.problems = (*problems, *found.problems)
        self._look_again(known, found.waits if settings.enrol else "")
        return found.workload

    def _look_again(self, known: _Known, waits: str) -> None:
        now = self.clock()
        known.waits = waits
        if not waits:
            known.look_at, known.delay, known.waits_since = None, _FIRST_S, None
            return
        if known.waits_since is None:
            known.waits_since = now
        known.look_at = now + known.delay
        known.delay = min(known.delay * 2, _LONGEST_S)
