"""What is wanted of a pod, as the labels and annotations of its namespace and its own say. Pure.

A pod's own count before its namespace's. But who may label pods in a namespace is not always who decides about it: in a
namespace that is enrolled a pod may only tighten what the namespace says, unless the namespace is labelled
`nodeseal.io/pods-may-relax: "true"`.

What is wrong is told, and nothing of it counts: of a pod in a namespace that is enrolled its namespace's settings hold
then, as if it had none of its own; of any other pod, and of a namespace, whatever held before. Nothing is half applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from nodeseal.documents.document import Broken, Node, Problems, Scalar, Tag, read_document, shown
from nodeseal.documents.document import Mapping as MappingNode
from nodeseal.documents.exclude import read_exclusions
from nodeseal.documents.limits import read_limits
from nodeseal.documents.schema import Fields
from nodeseal.kubernetes.objects import Meta, Namespace, Pod
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions
from nodeseal.mesh.limits import UNCHANGED, LimitChanges
from nodeseal.mesh.workload import Connect, Mode, OnFailure

PREFIX = "nodeseal.io/"
ENROL, MODE = f"{PREFIX}enrol", f"{PREFIX}mode"
"""Labels, so that objects can be selected by them: "true" or "false", "strict" or "permissive"."""
PODS_MAY_RELAX = f"{PREFIX}pods-may-relax"
"""A label of namespaces: "true" or "false"."""
SUSPENDED = f"{PREFIX}suspended"
"""A label of namespaces: "true" takes all of its pods out, whatever they and it say otherwise. For emergencies: it is
put on and taken off with nothing else changed."""
ON_FAILURE, CONNECT = f"{PREFIX}on-failure", f"{PREFIX}connect"
"""Annotations: "closed" or "open", "truthful" or "early"."""
EXCLUDE, LIMITS = f"{PREFIX}exclude", f"{PREFIX}limits"
"""Annotations: in YAML or JSON what the fields of these names are in a mesh directory."""
NETWORK_POLICIES = f"{PREFIX}network-policies"
"""An annotation: "respected" or "ignored", see nodeseal.sources.kubernetes.network_policies."""

_POD_LABELS = (ENROL, MODE)
_NAMESPACE_LABELS = (*_POD_LABELS, PODS_MAY_RELAX, SUSPENDED)
_ANNOTATIONS = (ON_FAILURE, CONNECT, EXCLUDE, LIMITS, NETWORK_POLICIES)
_NESTED = (EXCLUDE, LIMITS)
_NESTED_MAX = 16 << 10
"""Bytes: some times what the longest that counts has. Whoever may start pods may write 256 KiB, again and again."""
_MOST_PASSED_OVER = 8
"""That are told of one object."""


class NetworkPolicies(StrEnum):
    """Whether a pod is enrolled that a NetworkPolicy does not fit."""

    RESPECTED = "respected"
    """It is left as it is."""
    IGNORED = "ignored"
    """It is enrolled, whatever the policy says."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a workload of the mesh model is made with, if nothing stands against it."""

    enrol: bool = False
    mode: Mode = Mode.PERMISSIVE
    on_failure: OnFailure = OnFailure.CLOSED
    connect: Connect | None = None
    exclude: Exclusions = NO_EXCLUSIONS
    limits: LimitChanges = UNCHANGED
    network_policies: NetworkPolicies = NetworkPolicies.RESPECTED


@dataclass(frozen=True, slots=True)
class Stated:
    """What one object says: the fields of Settings that it has something for."""

    values: Mapping[str, Any]
    pods_may_relax: bool = False

    def over(self, settings: Settings) -> Settings:
        """`settings` with what is said here."""
        return replace(settings, **self.values)


@dataclass(frozen=True, slots=True)
class Wanted:
    """`settings`: None: whatever held before; if nothing did, it is not enrolled. `problems`: one line each, what is
    wrong and what to do."""

    settings: Settings | None
    problems: tuple[str, ...] = ()


def may_enrol(namespace: Namespace) -> bool:
    """Whether the namespace says, or may have meant, that its pods are to be enrolled."""
    labels = namespace.metadata.labels
    return labels.get(ENROL, "false") != "false" and labels.get(SUSPENDED) != "true"


def asks_itself(pod: Pod) -> bool:
    """Whether it has the label to be enrolled."""
    return pod.metadata.labels.get(ENROL) == "true"


def wanted(namespace: Namespace, pod: Pod) -> Wanted:
    """What is wanted of the pod."""
    around, problems = _read(namespace.metadata, f"namespace {namespace.metadata.name}", _NAMESPACE_LABELS)
    if namespace.metadata.labels.get(SUSPENDED) == "true":
        # In an emergency another label that is wrong is no obstacle.
        return Wanted(Settings(), problems)
    if around is None:
        return Wanted(None, problems)
    default = around.over(Settings())
    where = f"pod {pod.metadata.namespace}/{pod.metadata.name}"
    own, its_problems = _read(pod.metadata, where, _POD_LABELS)
    problems += its_problems
    if own is None:
        # Who is enrolled by its own wish alone stays what it was: a slip is no wish to leave.
        return Wanted(default if default.enrol else None, problems)
    settings = own.over(default)
    relaxed = _relaxed(default, settings) if default.enrol and not around.pods_may_relax else ()
    if relaxed:
        text = (
            f"{where}: {', '.join(relaxed)} would relax what its namespace says, which holds; "
            f'label the namespace {PODS_MAY_RELAX}: "true" if pods may'
        )
        return Wanted(default, (*problems, text))
    return Wanted(settings, problems)


def _relaxed(default: Settings, settings: Settings) -> tuple[str, ...]:
    """The labels and annotations that would allow more than the namespace does."""
    found = {
        ENROL: default.enrol and not settings.enrol,
        MODE: default.mode is Mode.STRICT and settings.mode is not Mode.STRICT,
        ON_FAILURE: default.on_failure is OnFailure.CLOSED and settings.on_failure is not OnFailure.CLOSED,
        EXCLUDE: not _within(settings.exclude.inbound, default.exclude.inbound)
        or not _within(settings.exclude.outbound, default.exclude.outbound),
        NETWORK_POLICIES: settings.network_policies is NetworkPolicies.IGNORED is not default.network_policies,
    }
    return tuple(name for name, is_so in found.items() if is_so)


def _within(excluded: Excluded, allowed: Excluded) -> bool:
    """Whether nothing is excluded that is not excluded there."""
    ports = all(any(a.first <= one.first and one.last <= a.last for a in allowed.ports) for one in excluded.ports)
    return ports and all(
        any(a.version == one.version and one.subnet_of(a) for a in allowed.networks)  # type: ignore[arg-type]
        for one in excluded.networks
    )


def _read(meta: Meta, where: str, labels: tuple[str, ...]) -> tuple[Stated | None, tuple[str, ...]]:
    """What an object says; None if something of it is wrong. And what is wrong, or passed over."""
    problems = Problems(where)
    entries: dict[str, Node] = {}
    passed_over: list[str] = []
    for known, other, texts in ((labels, _ANNOTATIONS, meta.labels), (_ANNOTATIONS, labels, meta.annotations)):
        kind, another = ("label", "an annotation") if known is labels else ("annotation", "a label")
        for name, text in texts.items():
            if name in known:
                entries[name] = _node(name, text, problems)
            elif name in other:
                passed_over.append(f"{where}: the {kind} {name} says nothing: it is {another}")
            elif name.startswith(PREFIX) and len(passed_over) < _MOST_PASSED_OVER:
                near = get_close_matches(name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known], 1)
                meant = f"; {PREFIX}{near[0]} may be meant" if near else ""
                passed_over.append(f"{where}: the {kind} {shown(name)} says nothing: there is none of this name{meant}")
    said = Fields(problems, MappingNode(0, entries))
    values: dict[str, Any] = {}
    if ENROL in entries:
        values["enrol"] = _truth(said, ENROL)
    if MODE in entries:
        values["mode"] = said.choice(MODE, Mode.PERMISSIVE)
    if ON_FAILURE in entries:
        values["on_failure"] = said.choice(ON_FAILURE, OnFailure.CLOSED)
    if CONNECT in entries:
        values["connect"] = said.choice(CONNECT, Connect.TRUTHFUL)
    if EXCLUDE in entries:
        values["exclude"] = read_exclusions(said, EXCLUDE)
    if LIMITS in entries:
        values["limits"] = read_limits(said, LIMITS)
    if NETWORK_POLICIES in entries:
        values["network_policies"] = said.choice(NETWORK_POLICIES, NetworkPolicies.RESPECTED)
    if SUSPENDED in entries:
        _truth(said, SUSPENDED)
    may_relax = PODS_MAY_RELAX in entries and _truth(said, PODS_MAY_RELAX)
    until = "nothing that it says of nodeseal counts until it is corrected"
    wrong = tuple(f"{replace(problem, line=0)}; {until}" for problem in problems.found)
    return (None if wrong else Stated(values, may_relax)), (*wrong, *passed_over)


def _node(name: str, text: str, problems: Problems) -> Node:
    if name not in _NESTED:
        return Scalar(0, text, Tag.TEXT)
    if len(text) > _NESTED_MAX:
        problems.add(0, name, f"at most {_NESTED_MAX >> 10} KiB", f"{len(text) >> 10} KiB")
        return Broken(0)
    inner = Problems(problems.file)
    found = read_document(text.encode(), inner)
    for problem in inner.found:
        problems.add(0, name, problem.expected, problem.found)
    return found if found is not None else Broken(0)


def _truth(said: Fields, name: str) -> bool:
    return said.text(name, expected='"true" or "false"', pattern="true|false") == "true"
