"""Trust anchors, revocations and federated domains in a ConfigMap: all of it is right, or nothing of it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeseal.kubernetes.objects import Meta
from nodeseal.mesh.federated import FEDERATED
from nodeseal.mesh.revocation import REVOCATIONS
from nodeseal.mesh.trust_anchor import TRUST_ANCHORS
from nodeseal.sources.kubernetes.documents import ConfigMap, Documents, read
from support.anchors import make_ca, root_of


def a_map(**data: str) -> ConfigMap:
    return ConfigMap(
        Meta("nodeseal-mesh", "nodeseal-system"),
        {key.replace("_", "."): text for key, text in data.items()},
    )


def found(**data: str) -> Documents:
    return read(a_map(**data), "example.org")


def test_no_config_map_says_that_there_is_nothing() -> None:
    assert read(None, "example.org") == Documents()
    assert found().problems == ()
    assert not any(found().of(kind) for kind in (TRUST_ANCHORS, REVOCATIONS, FEDERATED))


def test_documents_are_those_of_a_mesh_directory(tmp_path: Path) -> None:
    anchor = root_of(make_ca(tmp_path / "ca"))
    lines = "".join(f"      {line}\n" for line in anchor.pem.splitlines())
    documents = found(
        trust_yaml=f"trust_anchors:\n  - pem: |\n{lines}",
        revocations_json='{"revocations": [{"serials": ["1f", "2a"], "reason": "lost"}]}',
        readme_txt=": this is no document",
    )
    assert documents.problems == ()
    assert list(documents.of(TRUST_ANCHORS)) == [anchor.key]
    assert len(documents.of(REVOCATIONS)) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("revocations: 5", "revocations: expected a list of revocations"),
        ("workloads: []", "found the unknown field 'workloads'"),
        ("trust_domain: example.org", "found the unknown field 'trust_domain'"),
        ("revocations: [{serials: [xyz]}]", "revocations[0].serials[0]: expected a serial number"),
        ("a: [", ""),
        ("[" * 5000, ""),
    ],
)
def test_one_mistake_and_nothing_counts(text: str, problem: str) -> None:
    documents = found(good_yaml="revocations: [{serials: ['1f']}]", bad_yaml=text)
    assert documents.objects is None
    assert documents.problems
    assert all(line.startswith("ConfigMap nodeseal-system/nodeseal-mesh, bad.yaml") for line in documents.problems)
    assert any(problem in line for line in documents.problems)
