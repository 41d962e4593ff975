"""The pods of a node while they and their surroundings change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from nodeseal.kubernetes.objects import Key, Meta, Namespace, Pod, PodIp, PodSpec, PodStatus
from nodeseal.mesh.workload import Mode, Workload, WorkloadName
from nodeseal.sources.kubernetes import own_pods as module
from nodeseal.sources.kubernetes.network_policies import (
    LabelSelector,
    NetworkPolicy,
    PolicyPort,
    PolicyRule,
    PolicySpec,
)
from nodeseal.sources.kubernetes.own_pods import Held, OwnPods
from nodeseal.sources.kubernetes.places import Place

NAME = WorkloadName("shop", "web")
ENROL, MODE = "nodeseal.io/enrol", "nodeseal.io/mode"


class FakePlaces:
    """`there`: UID -> the place."""

    def __init__(self) -> None:
        self.there: dict[str, FakePlace] = {}
        self.asked: list[list[str]] = []
        self.hints: dict[str, str] = {}

    def find(self, uids: Iterable[str]) -> dict[str, FakePlace]:
        self.asked.append(sorted(uids))
        return {uid: self.there[uid] for uid in uids if uid in self.there}

    def hint(self, uid: str, netns: str) -> None:
        self.hints[uid] = netns

    def forget(self, uid: str, netns: str | None = None) -> bool:
        if netns is not None and self.hints.get(uid) != netns:
            return False
        return self.hints.pop(uid, None) is not None


class FakePlace(Place):
    """`gone`: it does not hold."""

    gone: set[str] = set()  # noqa: RUF012

    @property
    def holds(self) -> bool:
        return self.netns not in self.gone


def place(netns: str, *addresses: str) -> FakePlace:
    return FakePlace(netns, 1, frozenset(map(ip_address, addresses)))


def pod(uid: str = "u1", *ips: str, name: str = "web", phase: str = "Running", **labels: str) -> Pod:
    meta = Meta(name, "shop", uid, {key.replace("_", "-"): text for key, text in labels.items()})
    return Pod(meta, PodSpec("node1", "web"), PodStatus(phase, [PodIp(ip) for ip in ips or ("10.1.0.5",)]))


class World:
    def __init__(self) -> None:
        self.pods: dict[Key, Pod] = {}
        self.namespaces: dict[Key, Namespace] = {}
        self.policies: dict[Key, NetworkPolicy] = {}
        self.places = FakePlaces()
        self.now = 0.0
        self.own = self.agent()
        self.workloads: dict[WorkloadName, Workload] = {}

    def agent(self, held: dict[str, Held] | None = None) -> OwnPods:
        fake: Any = self.places
        return OwnPods(
            "node1", self.pods, self.namespaces, self.policies, fake, "nodeseal-system", lambda: self.now, held or {}
        )

    def put(self, one: Pod) -> None:
        self.pods[one.key] = one
        self.own.changed([one.key])

    def remove(self, one: Pod) -> None:
        del self.pods[one.key]
        self.own.changed([one.key])

    def label(self, **labels: str) -> None:
        self.namespaces["", "shop"] = Namespace(Meta("shop", labels={f"nodeseal.io/{k}": v for k, v in labels.items()}))
        self.own.surroundings_changed(["shop"])

    async def refresh(self) -> Workload | None:
        for name, workload in (await self.own.refresh()).items():
            if workload is None:
                self.workloads.pop(name, None)
            else:
                self.workloads[name] = workload
        return self.workloads.get(NAME)

    def problems(self) -> list[str]:
        return [text for _, text in self.own.problems()]


def play(story: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        await story(World())

    asyncio.run(whole())


@pytest.fixture(autouse=True)
def nothing_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePlace, "gone", set())


def test_label_of_the_namespace_takes_a_pod_in_and_out() -> None:
    async def story(world: World) -> None:
        world.places.there["u1"] = place("/n/1", "10.1.0.5")
        world.put(pod())
        one = await world.refresh()
        assert one is not None
        assert (one.wanted, one.netns) == (False, None)
        world.label(enrol="true")
        one = await world.refresh()
        assert one is not None
        assert (one.wanted, one.netns) == (True, "/n/1")
        world.label()
        one = await world.refresh()
        assert one is not None
        assert not one.wanted

    play(story)


def test_many_pods_that_start_at_once_are_looked_for_together() -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        for number in range(110):
            world.places.there[f"u{number}"] = place(f"/n/{number}", f"10.1.1.{number}")
            world.put(pod(f"u{number}", f"10.1.1.{number}", name=f"web-{number}"))
        await world.refresh()
        assert len(world.places.asked) == 1
        assert len(world.workloads) == 110
        await world.refresh()
        assert len(world.places.asked) == 1

    play(story)


def test_pod_of_the_same_name_with_another_uid_is_another_pod() -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        world.places.there |= {"u1": place("/n/1", "10.1.0.5"), "u2": place("/n/2", "10.1.0.5")}
        world.put(pod("u1"))
        await world.refresh()
        world.put(pod("u2"))
        one = await world.refresh()
        assert one is not None
        assert one.netns == "/n/2"

    play(story)


def test_sandbox_that_is_made_anew_is_found() -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        world.places.there["u1"] = place("/n/1", "10.1.0.5")
        world.put(pod())
        await world.refresh()
        FakePlace.gone.add("/n/1")
        world.places.there["u1"] = place("/n/2", "10.1.0.9")
        assert not world.own.pending
        world.own.check_places()
        assert world.own.pending
        # The kubelet has not told the address yet.
        assert await world.refresh() is None
        world.put(pod("u1", "10.1.0.9"))
        one = await world.refresh()
        assert one is not None
        assert (one.netns, str(one.address)) == ("/n/2", "10.1.0.9")

    play(story)


def test_pods_that_exchanged_their_addresses_are_told_apart_by_their_sandboxes() -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        one, other = pod("u1", "10.1.0.5"), pod("u2", "10.1.0.6", name="other")
        world.put(one)
        world.put(other)
        world.places.there |= {"u1": place("/n/3", "10.1.0.6"), "u2": place("/n/4", "10.1.0.5")}
        await world.refresh()
        assert world.workloads == {}
        world.put(pod("u1", "10.1.0.6"))
        world.put(pod("u2", "10.1.0.5", name="other"))
        await world.refresh()
        assert {name.name: (w.netns, str(w.address)) for name, w in world.workloads.items()} == {
            "web": ("/n/3", "10.1.0.6"),
            "other": ("/n/4", "10.1.0.5"),
        }

    play(story)


def test_what_is_not_found_is_looked_for_soon_and_then_less_and_less_often() -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        world.put(pod())
        waits = []
        for _time in range(14):
            await world.refresh()
            look = world.own.next_look()
            assert look is not None
            waits.append(look - world.now)
            world.now = look
        assert waits[0] == module._FIRST_S
        assert waits[-1] == module._LONGEST_S
        assert world.problems() == [
            "pod shop/web cannot be enrolled as it is to be: no sandbox of it is on the node node1"
        ]
        world.places.there["u1"] = place("/n/1", "10.1.0.5")
        one = await world.refresh()
        assert one is not None
        assert one.netns == "/n/1"
        assert world.own.next_look() is None
        assert world.problems() == []

    play(story)


def test_pod_that_is_gone_is_forgotten() -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        world.put(pod())
        await world.refresh()
        world.remove(pod())
        assert await world.refresh() is None
        assert world.own.next_look() is None
        assert world.own.held == {}

    play(story)


def test_slip_in_a_label_changes_nothing_and_is_told() -> None:
    async def story(world: World) -> None:
        world.places.there["u1"] = place("/n/1", "10.1.0.5")
        world.label(enrol="true", mode="strict")
        world.put(pod())
        await world.refresh()
        world.label(enrol="true", mode="strickt")
        one = await world.refresh()
        assert one is not None
        assert (one.wanted, one.mode) == (True, Mode.STRICT)
        (problem,) = world.problems()
        assert problem.startswith("namespace shop: nodeseal.io/mode: expected ")
        # Nor for the next agent, which has what was held from the disk.
        held = msgspec.json.decode(msgspec.json.encode(list(world.own.held.values())), type=list[Held])
        world.own = world.agent({one.uid: one for one in held})
        world.own.changed(world.pods)
        one = await world.refresh()
        assert one is not None
        assert (one.wanted, one.mode) == (True, Mode.STRICT)

    play(story)


def test_network_policy_that_does_not_fit_keeps_a_pod_out() -> None:
    async def story(world: World) -> None:
        world.places.there["u1"] = place("/n/1", "10.1.0.5")
        world.label(enrol="true")
        world.put(pod())
        await world.refresh()
        spec = PolicySpec(LabelSelector(), ["Ingress"], [PolicyRule([PolicyPort(port=80)])])
        world.policies["shop", "only-80"] = NetworkPolicy(Meta("only-80", "shop"), spec)
        world.own.surroundings_changed(["shop"])
        one = await world.refresh()
        assert one is not None
        assert not one.wanted
        (problem,) = world.problems()
        assert problem.startswith("pod shop/web is not enrolled: NetworkPolicy shop/only-80 ")
        annotated = replace_annotations(pod(), {"nodeseal.io/network-policies": "ignored"})
        world.namespaces["", "shop"] = Namespace(
            Meta("shop", labels={ENROL: "true", "nodeseal.io/pods-may-relax": "true"})
        )
        world.put(annotated)
        one = await world.refresh()
        assert one is not None
        assert one.wanted

    play(story)


def replace_annotations(one: Pod, annotations: dict[str, str]) -> Pod:
    return msgspec.structs.replace(one, metadata=msgspec.structs.replace(one.metadata, annotations=annotations))


def test_nodeseals_own_pods_are_never_enrolled() -> None:
    async def story(world: World) -> None:
        key = ("nodeseal-system", "ca")
        one = Pod(Meta("ca", "nodeseal-system", "u9", {ENROL: "true"}), PodSpec("node1"), pod().status)
        world.namespaces["", "nodeseal-system"] = Namespace(Meta("nodeseal-system", labels={ENROL: "true"}))
        world.pods[key] = one
        world.own.changed([key])
        await world.refresh()
        assert not world.workloads[WorkloadName(*key)].wanted

    play(story)


def test_pod_that_arrives_is_one_before_the_api_server_tells_its_address() -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        starting = Pod(pod().metadata, pod().spec, PodStatus("Pending"))
        world.put(starting)
        assert await world.refresh() is None
        world.places.there["u1"] = place("/n/7", "10.1.0.5")
        world.own.arrived("u1", "/n/7", (ip_address("10.1.0.5"),))
        assert world.places.hints == {"u1": "/n/7"}
        assert world.own.is_wanted(starting.key)
        one = await world.refresh()
        assert one is not None
        assert (one.netns, str(one.address)) == ("/n/7", "10.1.0.5")
        # Its sandbox failed, and goes.
        FakePlace.gone.add("/n/7")
        world.places.there.clear()
        world.own.departed("u1", "/n/7")
        assert await world.refresh() is None

    play(story)


def test_sandbox_that_goes_after_the_next_has_come_takes_nothing_away() -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        world.put(Pod(pod().metadata, pod().spec, PodStatus("Pending")))
        world.places.there["u1"] = place("/n/8", "10.1.0.6")
        world.own.arrived("u1", "/n/7", (ip_address("10.1.0.5"),))
        world.own.arrived("u1", "/n/8", (ip_address("10.1.0.6"),))
        world.own.departed("u1", "/n/7")
        one = await world.refresh()
        assert one is not None
        assert one.netns == "/n/8"

    play(story)


def test_failure_to_look_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        world.places.there["u1"] = place("/n/1", "10.1.0.5")
        world.put(pod())
        with monkeypatch.context() as patch:
            patch.setattr(world.places, "find", lambda _uids: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await world.refresh()
        assert await world.refresh() is not None

    play(story)


def test_namespace_that_is_told_after_its_pod_counts() -> None:
    async def story(world: World) -> None:
        world.places.there["u1"] = place("/n/1", "10.1.0.5")
        world.put(replace_annotations(pod(), {}))
        assert not (await world.refresh()).wanted  # type: ignore[union-attr]
        world.label(enrol="true")
        assert (await world.refresh()).wanted  # type: ignore[union-attr]

    play(story)


def test_pod_that_has_no_sandbox_yet_is_no_problem_of_ours() -> None:
    """It may wait for a volume for an hour."""

    async def story(world: World) -> None:
        world.label(enrol="true")
        world.put(Pod(pod().metadata, pod().spec, PodStatus("Pending")))
        assert await world.refresh() is None
        assert world.own.next_look() is None
        world.now += 3600
        assert world.problems() == []
        assert world.places.asked == []

    play(story)


def test_pod_that_comes_by_the_name_of_one_that_went_while_places_are_looked_for() -> None:
    async def story(world: World) -> None:
        world.label(enrol="true")
        world.places.there["u1"] = place("/n/1", "10.1.0.5")
        world.put(pod())
        await world.refresh()
        world.remove(pod())
        world.put(pod("u2", "10.1.0.7", name="other"))
        again = pod("u3", "10.1.0.8")
        find = world.places.find

        def slowly(uids: Iterable[str]) -> dict[str, FakePlace]:
            if again.key not in world.pods:
                world.put(again)
            return find(uids)

        world.places.find = slowly  # type: ignore[method-assign]
        await world.refresh()
        world.places.there["u3"] = place("/n/3", "10.1.0.8")
        one = await world.refresh()
        assert one is not None
        assert one.netns == "/n/3"

    play(story)
