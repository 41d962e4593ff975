"""What is different in two meshes, found by how they were made, is what comparing all of their objects finds."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import pytest

from nodeseal.mesh import lineage as module
from nodeseal.mesh.lineage import Lineage
from nodeseal.mesh.model import Mesh, MeshDifference, Mode, Phase, Workload, WorkloadName, changed_keys, difference
from nodeseal.mesh.workload import WORKLOADS

NAMES = tuple(WorkloadName("shop", f"w{number}") for number in range(12))
EMPTY = Mesh.from_difference(MeshDifference("example.org"))


def workload(name: WorkloadName, account: str = "one") -> Workload:
    address = IPv4Address(f"10.0.0.{NAMES.index(name) + 1}")
    return Workload(name, account, "node1", (address,), None, True, Mode.PERMISSIVE, Phase.ENROLLED)


def put(*workloads: Workload) -> MeshDifference:
    return MeshDifference("example.org", {WORKLOADS.name: workloads})


def changed(dice: random.Random, mesh: Mesh) -> Mesh:
    some = dice.sample(NAMES, dice.randrange(4))
    if dice.random() < 0.3:
        return mesh.with_phases({name: dice.choice(tuple(Phase)) for name in some})
    gone = tuple(name for name in some if dice.random() < 0.4)
    come = tuple(workload(name, dice.choice(("one", "other"))) for name in some if name not in gone)
    return mesh.apply(MeshDifference("example.org", {WORKLOADS.name: come}, {WORKLOADS.name: gone}))


def linear(old: Mesh, new: Mesh) -> tuple[set[Workload], set[WorkloadName]]:
    before, after = old.workloads, new.workloads
    return {one for name, one in after.items() if before.get(name) != one}, set(before.keys() - after.keys())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("steps", "keys"), [(256, 4096), (4, 4096), (256, 5)])
def test_difference_is_the_same_however_it_is_found(
    seed: int, steps: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", steps)
    monkeypatch.setattr(module, "KEYS", keys)
    dice = random.Random(seed)  # noqa: S311
    meshes = [EMPTY]
    for _ in range(60):
        # Of any former one: as what cores get branches off from what a source gives.
        meshes.append(changed(dice, dice.choice(meshes[-6:])))
    for _ in range(200):
        old, new = dice.choice(meshes), dice.choice(meshes)
        found = difference(old, new)
        come, gone = linear(old, new)
        assert set(found.put_of(WORKLOADS)) == come
        assert set(found.removed_of(WORKLOADS)) == gone
        assert old.apply(found) == new


def test_only_what_was_changed_is_looked_at() -> None:
    base = EMPTY.apply(put(*map(workload, NAMES)))
    left, right = base.apply(put(workload(NAMES[0], "other"))), base.with_phases({NAMES[1]: Phase.JOINING})
    assert changed_keys(base, left, WORKLOADS) == {NAMES[0]}
    assert changed_keys(left, right, WORKLOADS) == {NAMES[0], NAMES[1]}
    assert changed_keys(base, base, WORKLOADS) == set()


def test_meshes_of_different_origin_are_compared_as_a_whole() -> None:
    one, other = Mesh.build("example.org", [workload(NAMES[0])]), Mesh.build("example.org", [workload(NAMES[1])])
    assert changed_keys(one, other, WORKLOADS) is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 5)
    first = last = Lineage()
    for number in range(20):
        last = last.after({number})
    assert len(last._steps) == 5
    assert first.differing(last) is None
    monkeypatch.setattr(module, "KEYS", 10)
    assert last.differing(last.after(range(11))) is None, "too many to be worth it"
    wide = last.after(range(8)).after(range(8, 16))
    assert sum(len(step.keys) for step in wide._steps[1:]) <= 10
