"""The certificate service in a cluster: a real API server says whose tokens they are and which pods there are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from nodeseal.authority.creation import init_authority
from nodeseal.contracts.authority import CERTIFICATES, CertificateRequest, ServiceWord
from nodeseal.identity.issuer import IssuerError
from nodeseal.identity.key import PrivateKey
from nodeseal.identity.service_client import ClusterClient, ServiceAway, ServiceRefused
from nodeseal.kubernetes.api import Api
from nodeseal.kubernetes.kept import SECRETS, secret
from nodeseal.mesh.spiffe import SpiffeId
from support.api_server import ApiServer
from support.cluster_service import NAMESPACE, TRUST_DOMAIN, ClusterService, Running, identity
from support.patience import wait_for
from support.process import nodeseal

WEB, DB = identity("web"), identity("db")


@pytest.fixture(scope="module")
def cluster(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> ClusterService:
    return ClusterService.install(server, tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def service(cluster: ClusterService) -> Iterator[Running]:
    with cluster.running() as service:
        yield service


@pytest.fixture(scope="module")
def tokens(cluster: ClusterService) -> dict[str, str]:
    """Of the agents of two nodes: the first one has web, the second one db."""
    cluster.pod("n1", "web-1", "web")
    cluster.pod("n2", "db-1", "db")
    return {node: cluster.agent(node) for node in ("n1", "n2")}


@pytest.fixture(autouse=True)
def _all_there(service: Running, tokens: dict[str, str]) -> None:
    """Each test has them."""


def test_agent_gets_the_certificates_of_its_nodes_pods(
    cluster: ClusterService, service: Running, tokens: dict[str, str]
) -> None:
    issuer = cluster.issuer("n1", tokens["n1"])

    async def story() -> None:
        try:
            await issuer.begin()
            svid = await issuer.issue(SpiffeId.parse(WEB))
            assert svid.anchor == issuer.anchor
            again = await issuer.issue(SpiffeId.parse(WEB), svid)
            assert again.serial != svid.serial
            assert await issuer.condition() == ()
            with pytest.raises(IssuerError, match=r"no pod with the service account shop/db is bound to the node n1"):
                await issuer.issue(SpiffeId.parse(DB))
        finally:
            await issuer.close()

    cluster.play(story)
    lines = [json.loads(line) for line in service.audit.read_text().splitlines()]
    issued = next(line for line in lines if line["outcome"] == "issued")
    assert (issued["who"], issued["identity"]) == ("n1", WEB)
    assert issued["credential"].startswith("pod nodeseal-system/agent-n1 ")


def test_ca_was_made_and_its_root_is_a_secret_of_its_own(cluster: ClusterService) -> None:
    made, root = cluster.secret("nodeseal-ca"), cluster.secret("nodeseal-ca-root")
    assert sorted(made) == ["intermediate.key", "intermediate.pem", "root.pem"]
    assert sorted(root) == ["root.key", "root.pem"]
    assert root["root.pem"] == made["root.pem"]
    (intermediate,) = x509.load_pem_x509_certificates(made["intermediate.pem"])
    intermediate.verify_directly_issued_by(x509.load_pem_x509_certificate(root["root.pem"]))


def test_no_key_is_in_a_file_of_the_service(cluster: ClusterService, service: Running) -> None:
    place = service.log.parent
    for path in place.rglob("*"):
        if path.is_file():
            assert b"PRIVATE KEY" not in path.read_bytes(), path


@pytest.mark.parametrize("wanted", [WEB, DB])
def test_token_of_another_node_is_of_no_use_elsewhere(
    cluster: ClusterService, tokens: dict[str, str], wanted: str
) -> None:
    """Who has stolen it may be that node, and no other."""
    assert cluster.refused("n2", tokens["n1"], wanted) == ServiceWord.TOKEN_OF_ANOTHER_NODE
    assert cluster.refused("n1", tokens["n1"], DB) == ServiceWord.IDENTITY_NOT_ON_NODE


def test_token_of_a_pod_that_was_deleted(cluster: ClusterService) -> None:
    cluster.pod("n3", "web-3", "web")
    token = cluster.agent("n3")
    cluster.ask("n3", token, WEB)
    cluster.delete_pod("agent-n3", NAMESPACE)
    # The API server says yes to it for a while; the service knows that the pod is gone.
    word = wait_for(lambda: _word(cluster, "n3", token), "the token is refused")
    assert word in (ServiceWord.POD_GONE, ServiceWord.POD_TOKEN_UNTAKEN)
    # The next one of that name is another pod.
    fresh = cluster.agent("n3")
    cluster.ask("n3", fresh, WEB)
    assert cluster.refused("n3", token, WEB) in (ServiceWord.POD_GONE, ServiceWord.POD_TOKEN_UNTAKEN)


def _word(cluster: ClusterService, node: str, token: str) -> str | None:
    try:
        cluster.ask(node, token, WEB)
    except ServiceRefused as refused:
        return refused.word
    return None


def test_tokens_that_are_none_of_an_agents(cluster: ClusterService, tokens: dict[str, str]) -> None:
    own = ("agent-n4", cluster.pod("n4", "agent-n4", "nodeseal-agent", NAMESPACE))
    web = ("web-4", cluster.pod("n4", "web-4", "web"))
    api = cluster.token(own, audience=None)
    assert cluster.refused("n4", api, WEB) == ServiceWord.POD_TOKEN_UNTAKEN
    other = cluster.token(own, audience="somebody-else")
    assert cluster.refused("n4", other, WEB) == ServiceWord.POD_TOKEN_UNTAKEN
    of_web = cluster.token(web, "web", "shop")
    assert cluster.refused("n4", of_web, WEB) == ServiceWord.POD_TOKEN_OF_ANOTHER_ACCOUNT
    unbound = cluster.token(None)
    assert cluster.refused("n4", unbound, WEB) == ServiceWord.POD_TOKEN_UNBOUND
    head, body, signature = tokens["n1"].split(".")
    swapped = "A" if signature[10] != "A" else "B"
    forged = f"{head}.{body}.{signature[:10]}{swapped}{signature[11:]}"
    assert cluster.refused("n1", forged, WEB) == ServiceWord.POD_TOKEN_UNTAKEN
    good = cluster.token(own)
    cluster.ask("n4", good, WEB)


def test_pod_that_was_bound_a_moment_ago_has_its_certificate(cluster: ClusterService, tokens: dict[str, str]) -> None:
    for number in range(5):
        cluster.pod("n1", f"new-{number}", f"new-{number}")
        cluster.ask("n1", tokens["n1"], identity(f"new-{number}"))


def test_pod_that_has_gone_takes_its_account_with_it(cluster: ClusterService, tokens: dict[str, str]) -> None:
    cluster.pod("n1", "brief", "brief")
    wanted = identity("brief")
    cluster.ask("n1", tokens["n1"], wanted)
    cluster.delete_pod("brief")

    def refused() -> bool:
        try:
            return cluster.refused("n1", tokens["n1"], wanted) == ServiceWord.IDENTITY_NOT_ON_NODE
        except pytest.fail.Exception:
            return False

    wait_for(refused, "no certificate for it")


def test_pod_that_has_ended_has_none(cluster: ClusterService, tokens: dict[str, str]) -> None:
    cluster.pod("n1", "job", "job")
    cluster.ask("n1", tokens["n1"], identity("job"))
    body = {"status": {"phase": "Succeeded"}}
    path = "/api/v1/namespaces/shop/pods/job/status"
    cluster.server.ask("PATCH", path, body, "application/merge-patch+json")
    wait_for(lambda: _refuses(cluster, tokens["n1"], identity("job")), "no certificate for it")


def _refuses(cluster: ClusterService, token: str, wanted: str) -> bool:
    try:
        cluster.ask("n1", token, wanted)
    except ServiceRefused as refused:
        return refused.word == ServiceWord.IDENTITY_NOT_ON_NODE
    return False


def test_mirror_of_a_static_pod_opens_no_namespace(cluster: ClusterService, tokens: dict[str, str]) -> None:
    """Whoever has a node can make mirrors in any namespace: they name no service account."""
    cluster.account("bank", "default")
    mirror = {"kubernetes.io/config.mirror": "1", "kubernetes.io/config.source": "file"}
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "controller": True}
    uid = cluster.server.ask("GET", "/api/v1/nodes/n1")["metadata"]["uid"]
    cluster.pod("n1", "static-n1", "default", "bank", annotations=mirror, ownerReferences=[{**owner, "uid": uid}])
    found = cluster.server.ask("GET", "/api/v1/namespaces/bank/pods/static-n1")
    assert found["spec"].get("serviceAccountName", "") == ""
    assert cluster.refused("n1", tokens["n1"], identity("default", "bank")) == ServiceWord.IDENTITY_NOT_ON_NODE


def test_who_shows_nothing_gets_nothing(cluster: ClusterService, service: Running) -> None:
    with pytest.raises(ServiceAway, match=r"the token .* is empty"):
        cluster.ask("n1", "", WEB)
    assert (cluster.probe(service.address, "ready"), cluster.probe(service.address, "alive")) == (200, 200)


def test_revoked_ones_get_nothing_until_that_is_taken_back(
    cluster: ClusterService, service: Running, tokens: dict[str, str]
) -> None:
    """As agents read it. A document that is wrong changes nothing."""
    maps = f"/api/v1/namespaces/{NAMESPACE}/configmaps"

    def state(text: str) -> None:
        body = {"metadata": {"name": "nodeseal-mesh"}, "data": {"revocations.yaml": text}}
        apply = f"{maps}/nodeseal-mesh?fieldManager=test"
        kind = {"apiVersion": "v1", "kind": "ConfigMap"}
        cluster.server.ask("PATCH", apply, {**kind, **body}, "application/apply-patch+yaml")

    def word(node: str, wanted: str) -> str | None:
        try:
            cluster.ask(node, tokens[node], wanted)
        except ServiceRefused as refused:
            return refused.word
        return None

    state(json.dumps({"revocations": [{"identity": WEB, "reason": "leaked"}, {"node": "n2"}]}))
    wait_for(lambda: word("n1", WEB) == ServiceWord.IDENTITY_REVOKED, "web is revoked")
    assert word("n2", DB) == ServiceWord.NODE_REVOKED
    state("revocations: [{nobody: x}]")
    wait_for(lambda: "what was revoked before counts" in service.text(), "it says what is wrong")
    assert word("n1", WEB) == ServiceWord.IDENTITY_REVOKED
    assert cluster.probe(service.address, "ready") == 200
    cluster.server.ask("DELETE", f"{maps}/nodeseal-mesh")
    wait_for(lambda: word("n1", WEB) is None, "web has certificates again")
    assert word("n2", DB) is None


def test_status_is_told_beside_it(cluster: ClusterService, service: Running, tokens: dict[str, str]) -> None:
    cluster.ask("n1", tokens["n1"], WEB)
    config = str(service.log.parent / "ca.yaml")

    def told() -> dict[str, Any] | None:
        done = cluster.server.inside(lambda: nodeseal("ca", "status", "--config", config, "-o", "json"))
        found: dict[str, Any] = json.loads(done.stdout)
        assert (done.returncode, found["level"], found["errors"]) == (0, "ok", [])
        return found if found["issued_last_hour"] else None

    found = wait_for(told, "it counts what was issued")
    assert found["nodes"] > 0
    assert [one["state"] for one in found["services"]] == ["active"]
    listed = cluster.server.inside(lambda: nodeseal("ca", "issued", "--config", config, "--node", "n1", "-o", "json"))
    assert WEB in listed.stdout
    made = nodeseal("ca", "token", "create", "--node", "n1", "--config", config)
    assert made.stderr.startswith("nodeseal: this certificate service is Kubernetes'")


def test_two_that_begin_at_once_have_one_ca_and_both_issue(
    cluster: ClusterService, service: Running, tokens: dict[str, str]
) -> None:
    for name in ("nodeseal-ca-two", "nodeseal-ca-two-root"):
        with pytest.raises(AssertionError):
            cluster.secret(name)
    settings = {
        "kubernetes": {
            "namespace": NAMESPACE,
            "secret": "nodeseal-ca-two",
            "root_secret": "nodeseal-ca-two-root",
            "bundle": "nodeseal-bundle-two",
        }
    }
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles/nodeseal-ca"
    before = cluster.server.ask("GET", role)
    text = json.dumps(before["rules"]).replace('"nodeseal-ca', '"nodeseal-ca-two').replace("trust-bundle", "bundle-two")
    cluster.server.ask(
        "PUT", role, {**before, "metadata": {"name": "nodeseal-ca"}, "rules": before["rules"] + json.loads(text)}
    )
    with cluster.begun("127.0.0.2", **settings) as one, cluster.begun("127.0.0.3", **settings) as two:
        for each in (one, two):
            wait_for(lambda each=each: cluster.probe(each.address, "ready") == 200, each.text)  # type: ignore[misc]
        (root,) = x509.load_pem_x509_certificates(cluster.secret("nodeseal-ca-two")["root.pem"])
        made = sum(each.text().count("the CA of the trust domain cluster.local was made") for each in (one, two))
        assert made == 1
        assert cluster.secret("nodeseal-ca-two-root")["root.pem"] == cluster.secret("nodeseal-ca-two")["root.pem"]
        anchors = _published(cluster, "nodeseal-bundle-two")
        assert x509.load_pem_x509_certificates(anchors.encode()) == [root]


def _published(cluster: ClusterService, name: str) -> str:
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{name}"

    def found() -> str | None:
        try:
            return str(cluster.server.ask("GET", path)["data"]["bundle.pem"])
        except AssertionError:
            return None

    return wait_for(found, "the ConfigMap")


def test_flood_of_forged_tokens_reaches_the_api_server_bounded_and_agents_go_on(
    cluster: ClusterService, service: Running, tokens: dict[str, str], tmp_path: Path
) -> None:
    """From the agent's own address: it is known by its token, not by that."""
    bundle = _published(cluster, "nodeseal-trust-bundle")
    request = CertificateRequest(identity=WEB, csr=PrivateKey.generate().request(WEB).decode(), node="n1")
    issuer = cluster.issuer("n1", tokens["n1"])
    (tmp_path / "token").write_text(tokens["n1"])
    words: Counter[str] = Counter()

    async def flood(number: int) -> None:
        client = Forger(tokens["n1"], number)
        await client.meet([service.address], bundle)
        try:
            for _ in range(100):
                with contextlib.suppress(ServiceAway):
                    try:
                        await client.ask(CERTIFICATES, request)
                    except ServiceRefused as refused:
                        words[refused.word] += 1
        finally:
            await client.close()

    async def story() -> None:
        try:
            await issuer.begin()
            await issuer.issue(SpiffeId.parse(WEB))
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(flood(number))
                for _ in range(20):
                    await issuer.issue(SpiffeId.parse(WEB))
        finally:
            await issuer.close()

    before = cluster.server.counted("apiserver_request_total", resource="tokenreviews")
    cluster.play(story)
    reviews = cluster.server.counted("apiserver_request_total", resource="tokenreviews") - before
    assert words[ServiceWord.RATE] > 0
    assert 100 <= words[ServiceWord.POD_TOKEN_UNTAKEN] <= reviews < 1000
    assert words.total() == 2000


class Forger(ClusterClient):
    """Each token is another one, and says of itself what a good one says."""

    def __init__(self, token: str, number: int) -> None:
        super().__init__(TRUST_DOMAIN, None)
        self._said = token.rpartition(".")[0]
        self._number = number * 1_000_000

    def _proof(self) -> dict[str, str]:
        self._number += 1
        return {"Authorization": f"Bearer {self._said}.{self._number:0340d}"}


def test_one_that_is_told_to_go_serves_a_while_longer(cluster: ClusterService, tokens: dict[str, str]) -> None:
    """Until nobody is sent to it any more."""
    with cluster.running("127.0.0.4") as going:
        cluster.ask("n1", tokens["n1"], WEB, going.address)
        going.process.send_signal(signal.SIGTERM)
        wait_for(lambda: cluster.probe(going.address, "ready") == 503, "it says that it goes")
        cluster.ask("n1", tokens["n1"], WEB, going.address)
        assert going.process.wait(60) == 0


def test_another_ca_in_the_secret_is_taken_and_agents_go_over(
    cluster: ClusterService, service: Running, tokens: dict[str, str], tmp_path: Path
) -> None:
    """As cert-manager writes it: the anchors of both for a while."""
    former = cluster.secret("nodeseal-ca")
    init_authority(tmp_path / "ca", trust_domain=TRUST_DOMAIN, now=datetime.now(UTC))
    files = {
        "ca.crt": (tmp_path / "ca" / "root.pem").read_bytes() + former["root.pem"],
        "tls.crt": (tmp_path / "ca" / "intermediate.pem").read_bytes(),
        "tls.key": (tmp_path / "ca" / "intermediate.key").read_bytes(),
    }
    issuer = cluster.issuer("n1", tokens["n1"])

    async def story() -> None:
        api = Api(cluster.server.access(), "test")
        try:
            await issuer.begin()
            before = await issuer.issue(SpiffeId.parse(WEB))
            await api.replace(SECRETS, (NAMESPACE, "nodeseal-ca"), secret((NAMESPACE, "nodeseal-ca"), files))
            after = before
            while after.anchor == before.anchor:
                await asyncio.sleep(0.2)
                after = await issuer.issue(SpiffeId.parse(WEB))
            assert issuer.bundle.fingerprints == {before.anchor, after.anchor}
            await api.replace(SECRETS, (NAMESPACE, "nodeseal-ca"), secret((NAMESPACE, "nodeseal-ca"), former))
            while after.anchor != before.anchor:
                await asyncio.sleep(0.2)
                after = await issuer.issue(SpiffeId.parse(WEB))
        finally:
            await api.close()
            await issuer.close()

    cluster.play(story)
    assert service.process.poll() is None


def test_secret_that_is_none_is_told_and_the_former_ca_counts(cluster: ClusterService, tokens: dict[str, str]) -> None:
    with cluster.begun(
        "127.0.0.5", kubernetes={"namespace": NAMESPACE, "make": False, "secret": "nodeseal-ca-none"}
    ) as lacking:
        wait_for(lambda: "the verb get on secrets" in lacking.text(), "it says which right is missing")
        assert (cluster.probe(lacking.address, "ready"), cluster.probe(lacking.address, "alive")) == (503, 200)


def test_nothing_is_proven_without_the_api_server_and_all_is_well_after(
    cluster: ClusterService, service: Running, tokens: dict[str, str]
) -> None:
    fresh = cluster.token(("agent-n5", cluster.pod("n5", "agent-n5", "nodeseal-agent", NAMESPACE)))
    cluster.pod("n5", "web-5", "web")
    bundle = _published(cluster, "nodeseal-trust-bundle")
    cluster.server.stop()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster.server, "ask", lambda *_a, **_k: {"data": {"bundle.pem": bundle}})
            assert cluster.refused("n5", fresh, WEB) == ServiceWord.REVIEW_UNAVAILABLE
        assert cluster.probe(service.address, "alive") == 200
    finally:
        cluster.server.start()
    cluster.ask("n5", fresh, WEB)
