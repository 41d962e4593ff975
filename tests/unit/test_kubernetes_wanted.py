"""Who is enrolled in Kubernetes, and how: what a namespace and a pod say, and which of the two counts."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from nodeseal.kubernetes.objects import Meta, Namespace, Pod
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.limits import LimitChanges
from nodeseal.mesh.workload import Connect, Mode, OnFailure
from nodeseal.sources.kubernetes.wanted import NetworkPolicies, Settings, Wanted, may_enrol, wanted

LABELS = {"enrol", "mode", "pods-may-relax", "suspended"}
Said = dict[str, str]
OUT, IN = Settings(), Settings(enrol=True)


def meta(name: str, said: Said, namespace: str = "") -> Meta:
    """`said`: what is of nodeseal, without the prefix, as a label or as an annotation."""
    labels = {f"nodeseal.io/{key}": text for key, text in said.items() if key in LABELS}
    annotations = {f"nodeseal.io/{key}": text for key, text in said.items() if key not in LABELS}
    return Meta(name, namespace, labels={"app": "web", **labels}, annotations=annotations)


def found(namespace: Said, pod: Said) -> Wanted:
    return wanted(Namespace(meta("shop", namespace)), Pod(meta("web-1", pod, "shop")))


CLOSED_9090 = '{"inbound": {"ports": [9090]}}'
EXCLUDING_9090 = Exclusions(Excluded((PortRange(9090, 9090),)))


@pytest.mark.parametrize(
    ("namespace", "pod", "settings"),
    [
        ({}, {}, OUT),
        ({"enrol": "true"}, {}, IN),
        ({"enrol": "false"}, {}, OUT),
        ({"enrol": "true", "mode": "strict", "suspended": "true"}, {}, OUT),
        ({"suspended": "true"}, {"enrol": "true"}, OUT),
        ({"enrol": "true", "suspended": "false"}, {}, IN),
        ({}, {"enrol": "true"}, IN),
        ({"enrol": "false"}, {"enrol": "true"}, IN),
        ({"enrol": "true"}, {"enrol": "true"}, IN),
        ({"enrol": "true", "mode": "strict"}, {}, Settings(enrol=True, mode=Mode.STRICT)),
        ({"enrol": "true"}, {"mode": "strict"}, Settings(enrol=True, mode=Mode.STRICT)),
        ({"mode": "strict"}, {"enrol": "true"}, Settings(enrol=True, mode=Mode.STRICT)),
        # Who is enrolled by its own wish says itself how.
        ({"mode": "strict"}, {"enrol": "true", "mode": "permissive"}, IN),
        ({}, {"enrol": "true", "exclude": CLOSED_9090}, replace(IN, exclude=EXCLUDING_9090)),
        ({"enrol": "true", "on-failure": "open"}, {"on-failure": "closed"}, IN),
        ({"enrol": "true", "network-policies": "ignored"}, {}, replace(IN, network_policies=NetworkPolicies.IGNORED)),
        ({"enrol": "true", "network-policies": "ignored"}, {"network-policies": "respected"}, IN),
        ({}, {"enrol": "true", "network-policies": "ignored"}, replace(IN, network_policies=NetworkPolicies.IGNORED)),
        ({"enrol": "true"}, {"connect": "early"}, replace(IN, connect=Connect.EARLY)),
        ({"enrol": "true", "connect": "early"}, {"connect": "truthful"}, replace(IN, connect=Connect.TRUTHFUL)),
        ({"enrol": "true", "exclude": CLOSED_9090}, {}, replace(IN, exclude=EXCLUDING_9090)),
        ({"enrol": "true", "exclude": CLOSED_9090}, {"exclude": "{}"}, IN),
        ({"enrol": "true", "exclude": "inbound:\n  ports: [9000-9100]"}, {"exclude": CLOSED_9090},
         replace(IN, exclude=EXCLUDING_9090)),
        ({"enrol": "true", "limits": "connections: 100"}, {"limits": "memory: 1GiB"},
         replace(IN, limits=LimitChanges(memory=1 << 30))),
    ],
)  # fmt: skip
def test_pods_own_settings_count_before_its_namespaces(namespace: Said, pod: Said, settings: Settings) -> None:
    assert found(namespace, pod) == Wanted(settings)


RELAXING: list[tuple[Said, Said, str]] = [
    ({}, {"enrol": "false"}, "nodeseal.io/enrol"),
    ({"mode": "strict"}, {"mode": "permissive"}, "nodeseal.io/mode"),
    ({}, {"on-failure": "open"}, "nodeseal.io/on-failure"),
    ({}, {"network-policies": "ignored"}, "nodeseal.io/network-policies"),
    ({}, {"exclude": CLOSED_9090}, "nodeseal.io/exclude"),
    ({"exclude": CLOSED_9090}, {"exclude": "inbound: {ports: [9090-9091]}"}, "nodeseal.io/exclude"),
    ({"exclude": "outbound: {to: [10.0.0.0/8]}"}, {"exclude": "outbound: {to: ['fd00::/8']}"}, "nodeseal.io/exclude"),
    ({"exclude": "outbound: {to: [10.0.0.0/8]}"}, {"exclude": "outbound: {to: [0.0.0.0/0]}"}, "nodeseal.io/exclude"),
    (
        {"mode": "strict"},
        {"enrol": "false", "mode": "permissive", "on-failure": "open"},
        "nodeseal.io/enrol, nodeseal.io/mode, nodeseal.io/on-failure",
    ),
]


@pytest.mark.parametrize(("namespace", "pod", "what"), RELAXING)
def test_pod_cannot_relax_what_its_namespace_says(namespace: Said, pod: Said, what: str) -> None:
    namespace = {"enrol": "true", **namespace}
    result = found(namespace, {**pod, "connect": "early"})
    assert result.settings == found(namespace, {}).settings, "nothing of the pod counts"
    assert result.problems == (
        f"pod shop/web-1: {what} would relax what its namespace says, which holds; "
        'label the namespace nodeseal.io/pods-may-relax: "true" if pods may',
    )


@pytest.mark.parametrize(("namespace", "pod", "what"), RELAXING)
def test_pod_can_where_its_namespace_allows_it(namespace: Said, pod: Said, what: str) -> None:
    result = found({"enrol": "true", "pods-may-relax": "true", **namespace}, pod)
    assert result.problems == ()
    assert result.settings != found({"enrol": "true", **namespace}, pod).settings


def test_range_within_a_range_is_no_more_than_the_namespace_excludes() -> None:
    result = found(
        {"enrol": "true", "exclude": "outbound: {to: [10.0.0.0/8]}"}, {"exclude": "outbound: {to: [10.1.0.0/16]}"}
    )
    assert result == Wanted(replace(IN, exclude=Exclusions(outbound=Excluded(networks=(ip_network("10.1.0.0/16"),)))))


WRONG: list[tuple[Said, str]] = [
    ({"enrol": "yes"}, "nodeseal.io/enrol: expected \"true\" or \"false\", found 'yes'"),
    ({"mode": "stirct"}, "nodeseal.io/mode: expected permissive or strict, found 'stirct'"),
    ({"on-failure": ""}, "nodeseal.io/on-failure: expected closed or open, found ''"),
    ({"exclude": "[9090]"}, "nodeseal.io/exclude: expected a mapping, found a list"),
    ({"exclude": "inbound: {port: [1]}"},
     "nodeseal.io/exclude.inbound.port: expected 'ports', found the unknown field 'port'"),
    ({"limits": "connections: many"},
     "nodeseal.io/limits.connections: expected a number of connections, or none, found 'many'"),
    ({"limits": "{"}, "nodeseal.io/limits: expected YAML, "),
    ({"exclude": "&a {}"}, "nodeseal.io/exclude: expected a value without an anchor, found the anchor '&a'"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "text"), WRONG)
def test_nothing_counts_of_a_pod_that_says_something_wrong(said: Said, text: str) -> None:
    result = found({"enrol": "true", "mode": "strict"}, {"connect": "early", **said})
    assert result.settings == Settings(enrol=True, mode=Mode.STRICT)
    (problem,) = result.problems
    assert problem.startswith(f"pod shop/web-1: {text}")
    assert problem.endswith("; nothing that it says of nodeseal counts until it is corrected")


def test_pod_that_is_enrolled_by_its_own_wish_stays_what_it_was_after_a_slip() -> None:
    """As if it had said nothing would take it out of the mesh, to plaintext."""
    result = found({}, {"enrol": "true", "mode": "strict", "limits": "{"})
    assert result.settings is None
    assert len(result.problems) == 1


@pytest.mark.parametrize(("said", "text"), WRONG)
def test_namespace_that_says_something_wrong_changes_nothing(said: Said, text: str) -> None:
    result = found({"enrol": "true", **said}, {"enrol": "false"})
    assert result.settings is None
    (problem,) = result.problems
    assert problem.startswith(f"namespace shop: {text}")


def test_what_nodeseal_does_not_know_is_told_and_passed_over() -> None:
    shop = Namespace(Meta("shop", labels={"nodeseal.io/enroll": "true", "nodeseal.io/on-failure": "open"}))
    web = Pod(
        Meta("web-1", "shop", annotations={"nodeseal.io/mode": "strict", "nodeseal.io/x": "1", "other.io/enrol": "1"})
    )
    assert wanted(shop, web) == Wanted(
        OUT,
        (
            "namespace shop: the label 'nodeseal.io/enroll' says nothing: there is none of this name; "
            "nodeseal.io/enrol may be meant",
            "namespace shop: the label nodeseal.io/on-failure says nothing: it is an annotation",
            "pod shop/web-1: the annotation nodeseal.io/mode says nothing: it is a label",
            "pod shop/web-1: the annotation 'nodeseal.io/x' says nothing: there is none of this name",
        ),
    )


def test_pod_cannot_allow_itself_to_relax() -> None:
    result = found({"enrol": "true"}, {"enrol": "false", "pods-may-relax": "true"})
    assert result.settings == IN
    assert len(result.problems) == 2


def test_settings_of_nobody_are_the_mesh_models_defaults() -> None:
    assert Settings() == Settings(False, Mode.PERMISSIVE, OnFailure.CLOSED, None, NO_EXCLUSIONS, LimitChanges())


def test_suspended_namespace_is_out_though_something_else_of_it_is_wrong() -> None:
    result = found({"enrol": "yes", "suspended": "true"}, {"enrol": "true"})
    assert result.settings == OUT
    assert "nodeseal.io/enrol" in result.problems[0]


def test_slip_in_suspended_suspends_nothing() -> None:
    result = found({"enrol": "true", "suspended": "yes"}, {})
    assert result.settings is None
    assert "nodeseal.io/suspended" in result.problems[0]


@pytest.mark.parametrize(
    ("said", "may"),
    [
        ({}, False),
        ({"enrol": "false"}, False),
        ({"enrol": "true"}, True),
        ({"enrol": "yes"}, True),  # a slip: what held before counts
        ({"enrol": "true", "suspended": "true"}, False),
    ],
)
def test_namespace_may_enrol_if_it_does_not_say_otherwise(said: Said, may: bool) -> None:
    assert may_enrol(Namespace(meta("shop", said))) is may


def test_names_that_somebody_makes_by_the_thousand_are_told_a_few_times() -> None:
    said = wanted(
        Namespace(meta("shop", {"enrol": "true"})),
        Pod(Meta("web-1", "shop", "", {f"nodeseal.io/enroll{n}": "" for n in range(5000)})),
    )
    assert said.settings == IN
    assert len(said.problems) == 8
    assert "nodeseal.io/enrol may be meant" in said.problems[0]


def test_annotation_that_would_take_long_to_read_is_wrong() -> None:
    ports = ", ".join(["8080"] * 5000)
    said = found({"enrol": "true"}, {"exclude": f"inbound: {{ports: [{ports}]}}"})
    assert said.settings == IN
    (problem,) = said.problems
    assert problem.startswith("pod shop/web-1: nodeseal.io/exclude: expected at most 16 KiB, found 29 KiB; ")
