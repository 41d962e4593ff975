"""The cluster of tests/cluster: its plan, its files and its images; `make cluster` tries the nodes themselves."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509

from cluster import network, settings
from cluster.cgroups import Hierarchy, hierarchies
from cluster.credentials import Credentials
from cluster.errors import ClusterError, NoClusterError
from cluster.images import archive_of, layer_of, name_of, write_image
from cluster.plan import API_ADDRESS, MOST_NODES, ClusterPlan, ProxyMode

HYBRID = """\
ext4 / ext4 rw,relatime 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0
cgroup /sys/fs/cgroup/net_cls,net_prio cgroup rw,nosuid,nodev,noexec,relatime,net_cls,net_prio 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime,nsdelegate 0 0
cgroup2 /tmp/elsewhere cgroup2 rw,relatime 0 0
"""


def test_nodes_share_nothing() -> None:
    nodes = ClusterPlan("a", count=MOST_NODES, dual_stack=True).nodes
    for what in ("name", "addresses", "netns", "root", "orders", "cgroup", "pods"):
        assert len({getattr(node, what) for node in nodes}) == MOST_NODES
    assert len({address for node in nodes for address in node.addresses}) == 2 * MOST_NODES
    assert len({pods for node in nodes for pods in node.pods}) == 2 * MOST_NODES
    assert all(str(API_ADDRESS) != node.address for node in nodes)


def test_nodes_have_both_families_where_asked() -> None:
    one, two = ClusterPlan("a").nodes[0], ClusterPlan("a", dual_stack=True).nodes[0]
    assert [str(address) for address in one.addresses] == ["10.88.0.11"]
    assert [str(address) for address in two.addresses] == ["10.88.0.11", "fd88::b"]
    assert [str(pods) for pods in two.pods] == ["10.244.1.0/24", "fd44:0:0:1::/64"]


def test_clusters_of_two_names_share_nothing() -> None:
    one, other = ClusterPlan("a"), ClusterPlan("b")
    assert not {node.netns for node in one.nodes} & {node.netns for node in other.nodes}
    assert one.directory != other.directory
    assert one.cgroup != other.cgroup


def test_cluster_whose_name_begins_with_anothers_is_not_removed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ClusterPlan("a"), ClusterPlan("a-b")
    there = [netns for plan in (one, other) for netns in (plan.api_netns, *(node.netns for node in plan.nodes))]
    monkeypatch.setattr(network, "list_namespaces", lambda prefix: [name for name in there if name.startswith(prefix)])
    assert network.namespaces_of("a") == there[:3]
    assert network.namespaces_of("a-b") == there[3:]


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a" * 40])
def test_name_that_cannot_be_a_clusters(name: str) -> None:
    with pytest.raises(ClusterError, match="cannot be a cluster's name"):
        ClusterPlan(name)


@pytest.mark.parametrize("count", [0, MOST_NODES + 1])
def test_number_of_nodes_that_cannot_be(count: int) -> None:
    with pytest.raises(ClusterError, match=f"{count} nodes: a cluster has 1 to {MOST_NODES}"):
        ClusterPlan("a", count=count)


def test_plan_is_found_by_later_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.plan.ROOT", tmp_path)
    plan = ClusterPlan("a", 3, ProxyMode.NFTABLES, True, ("/work",))
    plan.directory.mkdir()
    plan.save()
    assert ClusterPlan.load("a") == plan
    with pytest.raises(NoClusterError, match="python -m cluster up --name b"):
        ClusterPlan.load("b")


def test_hierarchies_of_a_hybrid_machine() -> None:
    assert hierarchies(HYBRID) == [
        Hierarchy(Path("/sys/fs/cgroup/cpu"), "cgroup", "cpu"),
        Hierarchy(Path("/sys/fs/cgroup/net_cls,net_prio"), "cgroup", "net_cls,net_prio"),
        Hierarchy(Path("/sys/fs/cgroup/systemd"), "cgroup", "none,name=systemd"),
        Hierarchy(Path("/sys/fs/cgroup/unified"), "cgroup2", ""),
    ]


def test_machine_with_cgroup_v2_alone_is_refused() -> None:
    with pytest.raises(ClusterError, match="no cgroup v1 controllers"):
        hierarchies("cgroup2 /sys/fs/cgroup cgroup2 rw,relatime 0 0\n")


def test_files_of_a_node(golden: Callable[[str, str], None]) -> None:
    plan = ClusterPlan("a", proxy=ProxyMode.NFTABLES, dual_stack=True)
    golden("cluster_kubelet.json", settings.kubelet())
    golden("cluster_kube_proxy.json", settings.kube_proxy(plan))
    golden("cluster_containerd.toml", settings.containerd())
    golden("cluster_cni.json", settings.cni(plan.nodes[0]))


def test_certificate_names_user_and_groups(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "own", "https://10.0.0.1:6443")
    certificate, key = credentials.issue("node", "system:node:node1", ["system:nodes"])
    own = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert own.subject.rfc4514_string() == "CN=system:node:node1,O=system:nodes"
    own.verify_directly_issued_by(x509.load_pem_x509_certificate(credentials.ca.read_bytes()))
    assert key.stat().st_mode & 0o777 == 0o600


def test_certificate_of_a_server_has_its_addresses(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "own", "https://10.0.0.1:6443")
    certificate, _ = credentials.issue("server", "server", addresses=[IPv4Address("10.0.0.1")], names=["kubernetes"])
    names = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.IPAddress) == [IPv4Address("10.0.0.1")]
    assert names.value.get_values_for_type(x509.DNSName) == ["kubernetes"]


def test_archive_describes_its_layers() -> None:
    layers = [layer_of({"a": (b"one", 0o644)}), layer_of({"b/c": (b"two", 0o755)})]
    with tarfile.open(fileobj=io.BytesIO(archive_of("nodeseal.test/x:1", layers, {"Entrypoint": ["/a"]}))) as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    (manifest,) = json.loads(files["manifest.json"])
    config = json.loads(files[manifest["Config"]])
    assert manifest["RepoTags"] == ["nodeseal.test/x:1"]
    assert [files[name] for name in manifest["Layers"]] == layers
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    assert config["config"] == {"Entrypoint": ["/a"]}


def test_name_of_an_image_in_either_kind_of_archive(tmp_path: Path) -> None:
    docker, oci, other = tmp_path / "docker.tar", tmp_path / "oci.tar", tmp_path / "other.tar"
    docker.write_bytes(archive_of("nodeseal.test/x:1", [layer_of({})], {}))
    index = {"manifests": [{"annotations": {"org.opencontainers.image.ref.name": "example.org/x:2"}}]}
    oci.write_bytes(layer_of({"index.json": (json.dumps(index).encode(), 0o644)}))
    other.write_bytes(layer_of({"index.json": (b"{}", 0o644)}))
    assert name_of(docker) == "nodeseal.test/x:1"
    assert name_of(oci) == "example.org/x:2"
    with pytest.raises(ClusterError, match=r"other\.tar is no archive of an image"):
        name_of(other)


def test_layer_of_the_same_files_has_the_same_bytes() -> None:
    assert layer_of({"a": (b"1", 0o644), "b": (b"2", 0o755)}) == layer_of({"b": (b"2", 0o755), "a": (b"1", 0o644)})


def test_image_is_made_once_for_the_same_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.images.CACHE", tmp_path / "cache")
    first = write_image("x", "nodeseal.test/x:1", [layer_of({"a": (b"one", 0o644)})], {})
    made = first.stat().st_ino
    assert write_image("x", "nodeseal.test/x:1", [layer_of({"a": (b"one", 0o644)})], {}).stat().st_ino == made
    assert write_image("x", "nodeseal.test/x:1", [layer_of({"a": (b"two", 0o644)})], {}) != first
    assert write_image("x", "nodeseal.test/x:1", [layer_of({"a": (b"one", 0o644)})], {"Cmd": ["/a"]}) != first


def test_image_that_nobody_used_for_days_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.images.CACHE", tmp_path)
    old, kept = (write_image(name, "nodeseal.test/x:1", [layer_of({name: (b"", 0o644)})], {}) for name in "ab")
    for path, days in ((old, 8), (kept, 6)):
        os.utime(path, times=(time.time() - days * 86400,) * 2)
    write_image("c", "nodeseal.test/x:1", [layer_of({"c": (b"", 0o644)})], {})
    assert not old.exists()
    assert kept.exists()
