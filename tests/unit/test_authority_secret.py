"""The CA in a Secret: who makes it, what is taken, and when its intermediate is renewed; with an API of the test's."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load_key

from nodeseal.authority.creation import init_authority, make_authority
from nodeseal.authority.secret_signer import SecretSigner
from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.kept import Secret
from nodeseal.kubernetes.objects import Key, Resource

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CA, ROOT = ("nodeseal-system", "nodeseal-ca"), ("nodeseal-system", "nodeseal-ca-root")
FILES = ["intermediate.key", "intermediate.pem", "root.pem"]


class FakeApi:
    """Has Secrets. `before_create` happens before one is created: somebody else may be first."""

    def __init__(self) -> None:
        self.secrets: dict[Key, dict[str, str]] = {}
        self.versions: dict[Key, int] = {}
        self.before_create: Callable[[Key], None] = lambda _key: None
        self.away = False

    async def get(self, resource: Resource[Secret], key: Key) -> Secret | None:
        await asyncio.sleep(0)
        if self.away:
            raise AwayError("https://10.96.0.1:443: gone")
        if key not in self.secrets:
            return None
        meta = {"name": key[1], "namespace": key[0], "resourceVersion": str(self.versions[key])}
        return msgspec.convert({"metadata": meta, "data": self.secrets[key]}, resource.type)

    async def create(self, _resource: object, namespace: str, value: dict[str, Any]) -> bytes:
        key = namespace, value["metadata"]["name"]
        self.before_create(key)
        if key in self.secrets:
            raise RefusedError(409, "AlreadyExists", "it is there")
        self.put(key, value["data"])
        return b""

    async def replace(self, _resource: object, key: Key, value: dict[str, Any]) -> bytes:
        await asyncio.sleep(0)
        if value["metadata"].get("resourceVersion") != str(self.versions[key]):
            raise RefusedError(409, "Conflict", "somebody was first")
        self.put(key, value["data"])
        return b""

    def put(self, key: Key, data: dict[str, str]) -> None:
        self.secrets[key] = data
        self.versions[key] = self.versions.get(key, 0) + 1

    def files(self, key: Key, files: dict[str, bytes]) -> None:
        self.put(key, {name: b64encode(data).decode() for name, data in files.items()})


class World:
    def __init__(self) -> None:
        self.now = NOW
        self.api = FakeApi()

    def signer(self, *, make: bool = True) -> SecretSigner:
        return SecretSigner(cast(Api, self.api), CA, ROOT if make else None, "cluster.local", lambda: self.now)

    def made(self, **changes: bytes) -> dict[str, bytes]:
        """The files of a CA of others, in the Secret."""
        files = {name: data for name, data in make_authority("cluster.local", now=NOW).items() if name in FILES}
        files |= {name.replace("_", "."): data for name, data in changes.items()}
        self.api.files(CA, files)
        return files


def play(story: Callable[[World], Awaitable[None]]) -> None:
    asyncio.run(story(World()))


def test_first_one_makes_the_ca_and_the_next_one_takes_it() -> None:
    async def story(world: World) -> None:
        one, two = world.signer(), world.signer()
        await one.follow()
        await two.follow()
        assert (one.why, two.why) == (None, None)
        assert one.signer is not None
        assert two.signer is not None
        assert one.signer.anchors == two.signer.anchors
        assert sorted(world.api.secrets[CA]) == FILES
        assert sorted(world.api.secrets[ROOT]) == ["root.key", "root.pem"]
        assert world.api.versions == {CA: 1, ROOT: 1}

    play(story)


@pytest.mark.parametrize("contested", [ROOT, CA])
def test_of_two_that_begin_at_once_one_makes_it(contested: Key) -> None:
    """The other one comes in between at the worst moment."""

    async def story(world: World) -> None:
        other = FakeApi()
        await SecretSigner(cast(Api, other), CA, ROOT, "cluster.local", lambda: NOW).follow()

        def be_first(key: Key) -> None:
            if key == contested:
                world.api.before_create = lambda _key: None
                world.api.put(key, other.secrets[key])
                if key == CA:  # whose root is there as well
                    world.api.put(ROOT, other.secrets[ROOT])

        world.api.before_create = be_first
        signer = world.signer()
        await signer.follow()
        assert signer.why is None
        assert world.api.secrets[CA]["root.pem"] == world.api.secrets[ROOT]["root.pem"]
        assert world.api.secrets[ROOT] == other.secrets[ROOT]

    play(story)


def test_one_that_ended_in_the_middle_is_gone_on_from() -> None:
    async def story(world: World) -> None:
        await world.signer().follow()
        root = world.api.secrets[ROOT]["root.pem"]
        del world.api.secrets[CA]
        signer = world.signer()
        await signer.follow()
        assert signer.why is None
        assert world.api.secrets[CA]["root.pem"] == root

    play(story)


def test_nothing_is_made_where_the_ca_is_others() -> None:
    async def story(world: World) -> None:
        signer = world.signer(make=False)
        await signer.follow()
        assert signer.why is not None
        assert signer.why.startswith("there is no Secret nodeseal-system/nodeseal-ca; put a CA there")
        assert world.api.secrets == {}
        world.made()
        await signer.follow()
        assert signer.why is None

    play(story)


def test_form_of_cert_manager_is_taken_with_the_root_at_the_chains_end() -> None:
    async def story(world: World) -> None:
        made = make_authority("cluster.local", now=NOW)
        files = {
            "ca.crt": made["root.pem"],
            "tls.crt": made["intermediate.pem"] + made["root.pem"],
            "tls.key": made["intermediate.key"],
        }
        world.api.files(CA, files)
        signer = world.signer(make=False)
        await signer.follow()
        assert signer.why is None
        assert signer.signer is not None
        assert len(signer.signer.chain) == 1

    play(story)


def test_intermediate_is_renewed_in_the_last_third_of_its_life_once() -> None:
    async def story(world: World) -> None:
        one, two = world.signer(), world.signer()
        await one.follow()
        before = world.api.secrets[CA]
        world.now = NOW + timedelta(days=230)
        await one.follow()
        assert world.api.secrets[CA] == before
        world.now = NOW + timedelta(days=250)
        await asyncio.gather(one.follow(), two.follow())
        await one.follow()
        await two.follow()
        assert world.api.versions[CA] == 2
        assert world.api.secrets[CA]["root.pem"] == before["root.pem"]
        for signer in (one, two):
            assert signer.why is None
            assert signer.signer is not None
            assert signer.signer.not_after > NOW + timedelta(days=600)

    play(story)


def test_intermediate_whose_root_was_taken_away_is_warned_of() -> None:
    async def story(world: World) -> None:
        signer = world.signer()
        await signer.follow()
        del world.api.secrets[ROOT]
        world.now = NOW + timedelta(days=320)
        await signer.follow()
        assert signer.why is None
        (warning,) = signer.warnings(world.now)
        assert "intermediate (nodeseal-system/nodeseal-ca/intermediate.pem) expires in 45 days" in warning
        assert "docs/kubernetes-identity.md" in warning

    play(story)


def test_renewed_intermediate_leaves_all_anchors_there() -> None:
    async def story(world: World) -> None:
        await world.signer().follow()
        others = make_authority("cluster.local", now=NOW)["root.pem"].decode()
        present = world.api.secrets[CA]
        own = world.api.secrets[ROOT]["root.pem"]
        files = await world.api.get(cast(Any, Resource("", "v1", "secrets", Secret)), CA)
        assert files is not None
        world.api.files(CA, {**files.files(), "root.pem": files.files()["root.pem"] + others.encode()})
        world.now = NOW + timedelta(days=250)
        signer = world.signer()
        await signer.follow()
        await signer.follow()
        assert signer.signer is not None
        assert len(signer.signer.anchors) == 2
        assert world.api.secrets[CA]["intermediate.pem"] != present["intermediate.pem"]
        assert world.api.secrets[ROOT]["root.pem"] == own

    play(story)


def _encrypted(files: dict[str, bytes]) -> bytes:
    key: Any = load_key(files["intermediate.key"], None)
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda files: files.pop("root.pem"), "the Secret has no nodeseal-system/nodeseal-ca/root.pem"),
        (
            lambda files: files.pop("intermediate.key"),
            "intermediate.key in the Secret holds no private key in PEM form",
        ),
        (lambda files: files.update({"intermediate.pem": b"x"}), "holds no certificate in PEM form that can be used"),
        (lambda files: files.update({"intermediate.key": _encrypted(files)}), "in the Secret is encrypted"),
        (
            lambda files: files.update({"intermediate.key": make_authority("cluster.local", now=NOW)["root.key"]}),
            "is not the key of nodeseal-system/nodeseal-ca/intermediate.pem",
        ),
        (
            lambda files: files.update({"root.pem": make_authority("cluster.local", now=NOW)["root.pem"]}),
            "is not signed by nodeseal-system/nodeseal-ca/root.pem",
        ),
        (
            lambda files: files.update(make_authority("example.org", now=NOW)),
            "is for the trust domain example.org, and the service for cluster.local",
        ),
        (lambda files: files.update({"root.pem": b"x" * (2 << 20)}), "or one that is too large"),
    ],
)
def test_secret_that_is_wrong_is_one_line_and_the_former_ca_counts(
    spoil: Callable[[dict[str, bytes]], object], why: str
) -> None:
    async def story(world: World) -> None:
        files = world.made()
        signer = world.signer(make=False)
        await signer.follow()
        before = signer.signer
        assert before is not None
        spoil(files)
        world.api.files(CA, files)
        await signer.follow()
        assert signer.why is not None
        assert why in signer.why
        assert "\n" not in signer.why
        assert signer.signer is before
        world.made()
        await signer.follow()
        assert signer.why is None
        assert signer.signer is not before

    play(story)


def test_secret_that_is_no_base64_says_nothing_of_itself() -> None:
    async def story(world: World) -> None:
        world.api.put(CA, {"intermediate.key": "c2VjcmV0!!"})
        signer = world.signer(make=False)
        await signer.follow()
        assert signer.why == "the Secret nodeseal-system/nodeseal-ca cannot be read: it is not in base64"
        found = await world.api.get(cast(Any, Resource("", "v1", "secrets", Secret)), CA)
        assert "c2Vj" not in repr(found)

    play(story)


def test_ca_goes_on_while_the_api_server_is_away() -> None:
    async def story(world: World) -> None:
        signer = world.signer()
        await signer.follow()
        before = signer.signer
        world.api.away = True
        await signer.follow()
        assert signer.why == "https://10.96.0.1:443: gone"
        assert signer.signer is before
        world.api.away = False
        await signer.follow()
        assert signer.why is None

    play(story)


def test_ca_that_is_made_is_that_of_a_directory(tmp_path: Path) -> None:
    """The same certificates, but for their keys and names."""
    init_authority(tmp_path / "ca", trust_domain="cluster.local", now=NOW)
    made = make_authority("cluster.local", now=NOW)
    for name in ("root.pem", "intermediate.pem"):
        one, two = (
            x509.load_pem_x509_certificate(text) for text in ((tmp_path / "ca" / name).read_bytes(), made[name])
        )
        assert one.not_valid_after_utc == two.not_valid_after_utc
        assert [each.oid for each in one.extensions] == [each.oid for each in two.extensions]
