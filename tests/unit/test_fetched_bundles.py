"""What a node makes of what bundle endpoints and Workload APIs give: when it asks, what counts, what it tells."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.spiffe_bundle import SpiffeBundle
from nodeseal.local import run_directory
from nodeseal.mesh.federated import BundleEndpoint, Federated, Profile
from nodeseal.mesh.model import Mesh
from nodeseal.node import federation, fetched_bundle
from nodeseal.node.federation import Federation
from nodeseal.node.fetched_bundle import DEFAULT_S, LEAST_S, MOST_S, FetchedBundle, Given, digest
from support.agent_fakes import until
from support.anchors import make_ca, root_of
from support.bundle_server import BundleServer, answering, bundle_of, svid, web_certificate

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AT = BundleEndpoint("https://other.example/bundle.json", Profile.WEB)


# ---- when it is asked, and what counts


def fetched(given: Given | None = None, rand: float = 0.5) -> FetchedBundle:
    return FetchedBundle(AT, given, NOW, 1000.0, lambda: rand)


def of(hint: int | None = None, sequence: int | None = None, anchors: str = "anchors") -> SpiffeBundle:
    return SpiffeBundle(anchors, sequence, hint)


@pytest.mark.parametrize(
    ("hint", "seconds"), [(None, DEFAULT_S), (60, 60), (0, LEAST_S), (5, LEAST_S), (10**9, MOST_S)]
)
def test_hint_says_when_to_ask_again_within_bounds(hint: int | None, seconds: float) -> None:
    for rand, factor in ((0.0, 1.0), (1.0, 0.9)):
        one = fetched(rand=rand)
        assert one.take(of(hint), None, NOW, 2000.0)
        assert one.due == 2000.0 + seconds * factor


def test_failures_are_tried_again_more_and_more_seldom() -> None:
    one = fetched()
    waits = []
    for _ in range(8):
        one.fail("away", NOW, 0.0)
        waits.append(one.due)
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    one.take(of(60), None, NOW, 0.0)
    assert one.failing is None
    one.fail("away", NOW, 0.0)
    assert one.due == 10


def test_first_failure_is_what_is_told_of() -> None:
    one = fetched()
    one.fail("away", NOW, 0.0)
    one.fail("no bundle", NOW + timedelta(hours=1), 0.0)
    assert one.failing == (NOW, "no bundle")


@pytest.mark.parametrize(("age", "due"), [(0, 1001 + 60), (20, 1001 + 40), (3600, 1001), (-3600, 1001 + 60)])
def test_copy_of_a_former_agent_is_good_for_the_rest_of_its_time(age: int, due: float) -> None:
    """Whatever the clock was then."""
    assert fetched(Given(of(60), NOW - timedelta(seconds=age), AT.url, "")).due == due


def test_copy_from_another_endpoint_counts_until_this_one_has_answered() -> None:
    one = fetched(Given(of(60, 9), NOW, "https://former.example/", ""))
    assert one.counts(None)
    assert one.due == 1001
    assert one.take(of(60, 1), None, NOW, 0.0)  # its numbers are of its own


def test_bundle_of_an_older_sequence_does_not_count() -> None:
    one = fetched()
    assert one.take(of(sequence=7), None, NOW, 0.0)
    assert not one.take(of(sequence=6, anchors="older"), None, NOW, 0.0)
    assert one.given is not None
    assert one.given.bundle == of(sequence=7)
    assert one.failing == (NOW, f"{AT.url} gives an older bundle, of the sequence number 6, than it did (7)")
    # One without a number is the latest, and so is one of the same (section 4.2).
    assert one.take(of(anchors="new"), None, NOW, 0.0)
    assert one.take(of(sequence=6), None, NOW, 0.0)
    assert one.take(of(sequence=6, anchors="new"), None, NOW, 0.0)


def test_bundle_that_an_operator_changes_is_the_latest_until_the_next_fetch() -> None:
    """SPIFFE Federation, 4.2."""
    one = fetched()
    assert not one.counts("theirs")
    one.take(of(sequence=7), "theirs", NOW, 0.0)
    assert one.counts("theirs")
    assert one.counts(None)  # it cannot be read, or is gone
    assert not one.counts("another")
    assert one.take(of(sequence=1), "another", NOW, 0.0)  # they began anew
    assert one.counts("another")


# ---- a node


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federation, "LOOK_S", 0.02)
    monkeypatch.setattr(federation, "_IDLE_S", 0.02)
    for name in ("LEAST_S", "AGAIN_S", "FIRST_S"):
        monkeypatch.setattr(fetched_bundle, name, 0.02)


@pytest.fixture
def roots(tmp_path: Path, soon: None) -> list[str]:
    return [root_of(make_ca(tmp_path / name, trust_domain="other.org")).pem for name in "ab"]


@pytest.fixture
def server(tmp_path: Path, roots: list[str]) -> Iterator[BundleServer]:
    with BundleServer(web_certificate(tmp_path, "127.0.0.1"), answering(bundle_of(roots[0], hint=0))) as server:
        yield server


def entry(server: BundleServer, tmp_path: Path, bundle: str = "", url: str = "") -> Federated:
    endpoint = BundleEndpoint(url or server.url, Profile.WEB, ca_file=str(tmp_path / "web.pem"))
    return Federated("other.org", bundle, endpoint=endpoint)


def mesh_of(*domains: Federated) -> Mesh:
    return Mesh.build("example.org", (), federated=domains)


@asynccontextmanager
async def following(federation: Federation, *domains: Federated) -> AsyncIterator[list[dict[str, str]]]:
    """What bundles there were, each time that they changed."""
    told: list[dict[str, str]] = []

    async def changed() -> None:
        told.append(dict(federation.bundles))

    await federation.take(mesh_of(*domains))
    task = asyncio.create_task(federation.run(changed))
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.wait([task])


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(30):
            await story()

    asyncio.run(whole())


def rows(federation: Federation) -> list[tuple[str, str]]:
    return [(problem.word.value, f"{problem.text}; {problem.remedy}") for problem in federation.problems()]


def copies(tmp_path: Path) -> list[Path]:
    return run_directory.federated_bundles(tmp_path)


def test_endpoint_is_followed(server: BundleServer, roots: list[str], tmp_path: Path) -> None:
    async def story() -> None:
        federation = Federation(tmp_path)
        async with following(federation, entry(server, tmp_path)) as told:
            await until(lambda: federation.bundles == {"other.org": roots[0]})
            server.behaviour = answering(bundle_of(*roots, hint=0))
            await until(lambda: federation.bundles == {"other.org": "".join(roots)})
            assert told == [{"other.org": roots[0]}, {"other.org": "".join(roots)}]
            assert rows(federation) == []

    play(story)


def test_what_is_known_counts_while_the_endpoint_is_away(
    server: BundleServer, roots: list[str], tmp_path: Path
) -> None:
    async def story() -> None:
        federation = Federation(tmp_path)
        async with following(federation, entry(server, tmp_path)):
            await until(lambda: federation.bundles)
            server.behaviour = answering(b"nonsense")
            await until(lambda: rows(federation))
            ((word, text),) = rows(federation)
            assert word == "bundle-unread"
            assert text.startswith("the trust domain other.org: its bundle could not be fetched since 20")
            assert f"of other.org from {server.url} is no trust bundle" in text
            assert "; see to the endpoint, or correct 'bundle_endpoint'; what it gave at 20" in text
            assert federation.bundles == {"other.org": roots[0]}
            server.behaviour = answering(bundle_of(roots[1], hint=0))
            await until(lambda: federation.bundles == {"other.org": roots[1]})
            assert rows(federation) == []

    play(story)


def test_agent_that_starts_knows_what_the_one_before_it_knew(
    server: BundleServer, roots: list[str], tmp_path: Path
) -> None:
    async def story() -> None:
        before = Federation(tmp_path)
        async with following(before, entry(server, tmp_path)):
            await until(lambda: copies(tmp_path))
        server.close()
        after = Federation(tmp_path)
        await after.take(mesh_of(entry(server, tmp_path)))
        assert after.bundles == {"other.org": roots[0]}
        async with following(after, entry(server, tmp_path)):
            await until(lambda: rows(after))
            assert "what it gave at" in rows(after)[0][1]
            assert after.bundles == {"other.org": roots[0]}

    play(story)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"trust_domain": "third.org"}', "\x00" * 99, "[" * 99_999])
def test_copy_that_is_damaged_does_not_count(
    server: BundleServer, roots: list[str], tmp_path: Path, content: str
) -> None:
    async def story() -> None:
        before = Federation(tmp_path)
        async with following(before, entry(server, tmp_path)):
            await until(lambda: copies(tmp_path))
        (path,) = copies(tmp_path)
        path.write_text(content)
        after = Federation(tmp_path)
        await after.take(mesh_of(entry(server, tmp_path)))
        assert after.bundles == {}
        async with following(after, entry(server, tmp_path)):
            await until(lambda: after.bundles == {"other.org": roots[0]})

    play(story)


def test_copy_of_a_domain_that_is_listed_no_more_is_deleted(
    server: BundleServer, roots: list[str], tmp_path: Path
) -> None:
    async def story() -> None:
        federation = Federation(tmp_path)
        async with following(federation, entry(server, tmp_path)):
            await until(lambda: copies(tmp_path))
            await federation.take(mesh_of())
            assert (federation.bundles, copies(tmp_path), rows(federation)) == ({}, [], [])

    play(story)


def test_copy_that_is_being_written_while_its_domain_goes_is_deleted_too(
    server: BundleServer, roots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write = fetched_bundle.BundleCopies.write

    def slow(self: fetched_bundle.BundleCopies, trust_domain: str, given: Given) -> None:
        begun.set()
        go_on.wait(20)
        write(self, trust_domain, given)

    monkeypatch.setattr(fetched_bundle.BundleCopies, "write", slow)

    async def story() -> None:
        federation = Federation(tmp_path)
        async with following(federation, entry(server, tmp_path)):
            await until(begun.is_set)
            (task,) = federation._fetching.values()
            await federation.take(mesh_of())
            go_on.set()
            await until(task.done)
            assert copies(tmp_path) == []

    play(story)


def test_copy_says_nothing_that_is_secret(server: BundleServer, roots: list[str], tmp_path: Path) -> None:
    async def story() -> None:
        federation = Federation(tmp_path)
        async with following(federation, entry(server, tmp_path)):
            await until(lambda: copies(tmp_path))
        (path,) = copies(tmp_path)
        said = json.loads(path.read_text())
        assert said.keys() == {"trust_domain", "url", "at", "sequence", "hint", "beside", "anchors"}
        assert said["anchors"] == roots[0]

    play(story)


def test_empty_bundle_revokes_all(server: BundleServer, tmp_path: Path) -> None:
    async def story() -> None:
        federation = Federation(tmp_path)
        async with following(federation, entry(server, tmp_path)):
            await until(lambda: federation.bundles)
            server.behaviour = answering(bundle_of(hint=0))
            await until(lambda: not federation.bundles)
            assert [word for word, _ in rows(federation)] == ["bundle-empty"]
            # And stays so, whatever becomes of the endpoint.
            server.behaviour = answering(b"nonsense")
            await until(lambda: len(rows(federation)) == 2)
            assert federation.bundles == {}
        after = Federation(tmp_path)
        await after.take(mesh_of(entry(server, tmp_path)))
        assert after.bundles == {}

    play(story)


def test_bundle_beside_an_endpoint_is_the_first(server: BundleServer, roots: list[str], tmp_path: Path) -> None:
    async def story() -> None:
        federation = Federation(tmp_path)
        server.behaviour = answering(b"nonsense")
        async with following(federation, entry(server, tmp_path, roots[1])):
            assert federation.bundles == {"other.org": roots[1]}
            await until(lambda: rows(federation))
            assert "the bundle beside it counts" in rows(federation)[0][1]
            server.behaviour = answering(bundle_of(roots[0], hint=86400))
            await until(lambda: federation.bundles == {"other.org": roots[0]})
            # Another one beside it is the latest, and the endpoint is asked at once: not in a day.
            asked = len(server.requests)
            await federation.take(mesh_of(entry(server, tmp_path, "".join(roots))))
            assert federation.bundles == {"other.org": "".join(roots)}
            await until(lambda: federation.bundles == {"other.org": roots[0]})
            assert len(server.requests) > asked

    play(story)


def test_bundle_of_before_counts_until_a_new_endpoint_has_given_one(
    server: BundleServer, roots: list[str], tmp_path: Path
) -> None:
    async def story() -> None:
        federation = Federation(tmp_path)
        server.behaviour = answering(b"nonsense")
        async with following(federation, Federated("other.org", roots[1])):
            await federation.take(mesh_of(entry(server, tmp_path)))
            await until(lambda: rows(federation))
            assert federation.bundles == {"other.org": roots[1]}
            server.behaviour = answering(bundle_of(roots[0], hint=0))
            await until(lambda: federation.bundles == {"other.org": roots[0]})
            # What is listed no more is forgotten.
            await federation.take(mesh_of())
            server.behaviour = answering(b"nonsense")
            await federation.take(mesh_of(entry(server, tmp_path)))
            assert federation.bundles == {}

    play(story)


def test_endpoint_with_an_svid_is_known_by_the_bundle_that_it_gave_last(tmp_path: Path, soon: None) -> None:
    """Its domain changes its root: the first bundle, which the mesh state has, is of no use from then on."""
    old, new = (make_ca(tmp_path / name, trust_domain="other.org") for name in ("old", "new"))
    both = [root_of(old).pem, root_of(new).pem]
    identity = "spiffe://other.org/bundle-endpoint"
    with BundleServer(svid(old, identity, tmp_path), answering(bundle_of(both[0], hint=0))) as server:
        domain = Federated("other.org", both[0], endpoint=BundleEndpoint(server.url, Profile.SPIFFE, identity))

        async def story() -> None:
            federation = Federation(tmp_path)
            async with following(federation, domain):
                server.behaviour = answering(bundle_of(*both, hint=0))
                await until(lambda: federation.bundles == {"other.org": "".join(both)})
                server.show(svid(new, identity, tmp_path))
                server.behaviour = answering(bundle_of(both[1], hint=0))
                await until(lambda: federation.bundles == {"other.org": both[1]})
                asked = len(server.requests)
                await until(lambda: len(server.requests) > asked)
                # One that is signed by a root that was never told of is not asked.
                server.show(svid(old, identity, tmp_path))
                await until(lambda: rows(federation))
                assert federation.bundles == {"other.org": both[1]}

        play(story)


def test_endpoint_of_another_domain_is_known_by_that_ones_bundle(tmp_path: Path, roots: list[str]) -> None:
    third = make_ca(tmp_path / "third", trust_domain="third.org")
    own = make_ca(tmp_path / "own")
    for ca, identity in ((third, "spiffe://third.org/bundles"), (own, "spiffe://example.org/ns/a/sa/bundles")):
        with BundleServer(svid(ca, identity, tmp_path), answering(bundle_of(roots[0], hint=0))) as server:
            endpoint = BundleEndpoint(server.url, Profile.SPIFFE, identity)

            async def story(endpoint: BundleEndpoint = endpoint) -> None:
                federation = Federation(tmp_path, own=lambda: root_of(own).pem)
                thirds = Federated("third.org", root_of(third).pem)
                async with following(federation, thirds, Federated("other.org", endpoint=endpoint)):
                    await until(lambda: federation.bundles.get("other.org") == roots[0])
                    await federation.take(mesh_of())

            play(story)


def test_mesh_state_may_change_while_bundles_are_read(
    server: BundleServer, roots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slowly(_one: Federated) -> str:
        reading.set()
        assert go_on.wait(20)
        return roots[0]

    async def story() -> None:
        federation = Federation(tmp_path)
        await federation.take(mesh_of(Federated("file.org", roots[0]), entry(server, tmp_path)))
        monkeypatch.setattr("nodeseal.node.federation._read", slowly)
        look = asyncio.create_task(federation.look())
        await asyncio.to_thread(reading.wait, 20)
        take = asyncio.create_task(federation.take(mesh_of()))
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(look, take)
        assert federation.bundles == {}

    play(story)


def test_endpoint_whose_answer_brings_about_a_fault_ends_nothing(
    server: BundleServer, roots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_data: bytes, _name: str) -> SpiffeBundle:
        raise ZeroDivisionError

    async def story() -> None:
        federation = Federation(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr("nodeseal.node.federation.read_jwks", broken)
            async with following(federation, entry(server, tmp_path)):
                await until(lambda: rows(federation))
                assert "ZeroDivisionError" in rows(federation)[0][1]
                patched.undo()
                await until(lambda: federation.bundles == {"other.org": roots[0]})

    play(story)


def test_endpoint_that_hangs_holds_up_nobody_else(server: BundleServer, roots: list[str], tmp_path: Path) -> None:
    async def story() -> None:
        federation = Federation(tmp_path)
        with BundleServer(tmp_path / "web.pem", lambda _connection: None) as slow:
            slow.behaviour = slow.hang
            slow_one = Federated(
                "slow.org", endpoint=BundleEndpoint(slow.url, Profile.WEB, "", str(tmp_path / "web.pem"))
            )
            async with following(federation, slow_one, entry(server, tmp_path)):
                await until(lambda: slow.requests)
                server.behaviour = answering(bundle_of(roots[1], hint=0))
                await until(lambda: federation.bundles == {"other.org": roots[1]})
            slow.close()
            await until(lambda: not slow.connected)
            await asyncio.sleep(0.1)

    play(story)


# ---- from a Workload API


def test_bundle_that_the_workload_api_gives(roots: list[str], tmp_path: Path) -> None:
    async def story() -> None:
        given = {"other.org": roots[0], "unlisted.org": roots[1]}
        federation = Federation(tmp_path, given=lambda: given)
        await federation.take(mesh_of(Federated("other.org", from_workload_api=True)))
        assert federation.bundles == {"other.org": roots[0]}
        assert rows(federation) == []
        given["other.org"] = roots[1]
        await federation.look()
        assert federation.bundles == {"other.org": roots[1]}
        # Each answer has all that there are: what it has no more is withdrawn.
        del given["other.org"]
        await federation.look()
        assert federation.bundles == {}
        ((word, text),) = rows(federation)
        assert word == "bundle-unread"
        assert "gives no bundle of other.org; federate the agent's registration entry with it" in text

    play(story)


def test_mesh_states_own_bundle_comes_before_the_workload_apis(roots: list[str], tmp_path: Path) -> None:
    async def story() -> None:
        federation = Federation(tmp_path, given=lambda: {"other.org": roots[0]})
        await federation.take(mesh_of(Federated("other.org", roots[1])))
        assert federation.bundles == {"other.org": roots[1]}

    play(story)


def test_node_without_a_workload_api_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        federation = Federation(tmp_path)
        await federation.take(mesh_of(Federated("other.org", from_workload_api=True)))
        assert federation.bundles == {}
        assert "its bundle is to come of the Workload API, and the `ca` of this node is none" in rows(federation)[0][1]

    play(story)


def test_digest_of_nothing_is_none() -> None:
    assert (digest(None), digest("") != "") == ("", True)
