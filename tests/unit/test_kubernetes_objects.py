"""Of Kubernetes' objects the agent keeps what it reads: whoever may write them may write what they like."""

from __future__ import annotations

import json

import msgspec
import pytest

from nodeseal.kubernetes.objects import EndpointSlice, Namespace, Node, Pod, Service

OTHERS = {"kubectl.kubernetes.io/last-applied-configuration": "{}" * 1000, "endpoints.kubernetes.io/last-change": "1"}
READ = {"nodeseal.io/mode": "strict", "kubernetes.io/config.mirror": "1", "k8s.v1.cni.cncf.io/network-status": "[]"}


def with_annotations(annotations: dict[str, str]) -> bytes:
    return json.dumps({"metadata": {"name": "one", "annotations": annotations}}).encode()


@pytest.mark.parametrize("kind", [Service, EndpointSlice, Node])
def test_annotations_of_what_a_cluster_has_many_of_are_not_kept(kind: type[Service | EndpointSlice | Node]) -> None:
    found = msgspec.json.decode(with_annotations(OTHERS | READ), type=kind)
    assert b"annotations" not in msgspec.json.encode(found)


@pytest.mark.parametrize("kind", [Pod, Namespace])
def test_annotations_that_somebody_reads_are_kept(kind: type[Pod | Namespace]) -> None:
    assert msgspec.json.decode(with_annotations(OTHERS | READ), type=kind).metadata.annotations == READ


def test_annotations_by_the_thousand_are_not() -> None:
    many = {f"nodeseal.io/n{n}": "" for n in range(10_000)}
    assert len(msgspec.json.decode(with_annotations(many), type=Pod).metadata.annotations) == 100
