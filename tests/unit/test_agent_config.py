"""The agent's configuration file."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.capture.backends.backend import Choice
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.cores.process import CoreOptions
from nodeseal.daemon import verify
from nodeseal.local import config
from nodeseal.local.config import ConfigError
from nodeseal.local.core_settings import CoreSettings
from nodeseal.local.issuers import ClusterCa, DeliveredCa, NamespaceCa, OwnCa, ServiceCa
from nodeseal.local.mesh_source import KubernetesMesh, Outside
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Connect, PlaintextWay

MINIMAL = "node: node1\nmesh: mesh\nca: /etc/nodeseal/ca\n"


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    return config.load(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]


def test_defaults_and_relative_paths(tmp_path: Path) -> None:
    loaded = load(tmp_path, MINIMAL)
    assert loaded.node == "node1"
    assert loaded.mesh == tmp_path / "mesh"
    assert loaded.ca == OwnCa(Path("/etc/nodeseal/ca"))
    assert loaded.run_dir == Path("/run/nodeseal")
    assert 1 <= loaded.workers <= 4
    assert (loaded.certificate_lifetime, loaded.settle) == (timedelta(hours=24), timedelta(seconds=2))
    assert loaded.preconnect == timedelta(0)
    assert loaded.unacknowledged_limit is None
    assert loaded.capture is Choice.AUTO
    assert loaded.cgroup is None


def test_everything_given(tmp_path: Path) -> None:
    more = "run_dir: run\nworkers: 2\ncertificate_lifetime: 1.5h\nsettle: 250ms\ncgroup: /sys/fs/cgroup\n"
    loaded = load(tmp_path, MINIMAL + more + "preconnect: 10m\n")
    assert (loaded.run_dir, loaded.workers) == (tmp_path / "run", 2)
    assert (loaded.certificate_lifetime, loaded.settle) == (timedelta(minutes=90), timedelta(milliseconds=250))
    assert loaded.preconnect == timedelta(minutes=10)
    assert loaded.cgroup == Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("value", "local", "trusted"),
    [
        ("", True, []),
        ("node_addresses: []\n", False, []),
        ("node_addresses: [local]\n", True, []),
        ("node_addresses: [192.0.2.10, 'fd00::/64']\n", False, ["192.0.2.10/32", "fd00::/64"]),
        ("node_addresses:\n- 10.0.0.0/8\n- local\n", True, ["10.0.0.0/8"]),
    ],
)
def test_node_addresses(tmp_path: Path, value: str, local: bool, trusted: list[str]) -> None:
    addresses = load(tmp_path, MINIMAL + value).node_addresses
    assert (addresses.local, [str(network) for network in addresses.trusted]) == (local, trusted)


NODE_ADDRESS = "'local', an address, or a range of addresses such as 10.0.0.0/24"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("10.0.0.1", "node_addresses: expected a list of addresses and of 'local', for those of this machine"),
        ("[remote]", f"node_addresses[0]: expected {NODE_ADDRESS}, found 'remote'"),
        ("[local, 10.0.0.1/8]", "node_addresses[1]: expected a range that begins where its prefix says (10.0.0.0/8)"),
        ("[0.0.0.0/0]", "node_addresses[0]: expected a smaller range of addresses, found 0.0.0.0/0"),
        ("['::/64']", "node_addresses[0]: expected a smaller range of addresses, found ::/64"),
    ],
)
def test_wrong_node_addresses(tmp_path: Path, value: str, message: str) -> None:
    (line,) = problems(tmp_path, f"{MINIMAL}node_addresses: {value}\n")
    assert line.startswith(f"agent.yaml:4: {message}")


def test_revocation_lists_are_files(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).crls == ()
    assert load(tmp_path, f"{MINIMAL}crls: [a.crl, /etc/b.crl]\n").crls == (tmp_path / "a.crl", Path("/etc/b.crl"))
    assert problems(tmp_path, f"{MINIMAL}crls: [7]\n")[0].startswith("agent.yaml:4: crls[0]: expected a path, found ")


def test_where_cores_run(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).core == CoreSettings()
    text = MINIMAL + "core: {own_cgroup: true, memory: 2GiB, cpus: 1.5, image_directory: image}\n"
    assert load(tmp_path, text).core == CoreSettings(True, 2 << 30, 1.5, tmp_path / "image")
    text = MINIMAL + "core: {own_cgroup: true, memory: none, cpus: 2}\n"
    assert load(tmp_path, text).core == CoreSettings(True, None, 2.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("7", "core: expected a mapping, found the number 7"),
        ("{own_cgroup: 1}", "core.own_cgroup: expected true or false, found the number 1"),
        (
            "{own_cgroup: true, memory: 2}",
            "core.memory: expected a size from 64MiB such as 2GiB, or none, found the number 2",
        ),
        ("{own_cgroup: true, cpus: 0}", "core.cpus: expected a number of CPUs from 0.1, such as 2 or 1.5, or none"),
        ("{own_cgroup: true, cpus: 1e3}", "core.cpus: expected a number of CPUs from 0.1, such as 2 or 1.5, or none"),
        ("{memory: 2GiB}", "core.memory: expected 'own_cgroup: true' beside it, found none"),
        ("{cpus: 2}", "core.cpus: expected 'own_cgroup: true' beside it, found none"),
        ("{cgroup: true}", "core.cgroup: "),
    ],
)
def test_wrong_places_of_cores(tmp_path: Path, value: str, message: str) -> None:
    (line,) = problems(tmp_path, f"{MINIMAL}core: {value}\n")
    assert line.startswith(f"agent.yaml:4: {message}")


def test_hand_over_and_health(tmp_path: Path) -> None:
    plain = load(tmp_path, MINIMAL)
    assert (plain.hand_over, plain.health_directory) == (False, None)
    asked = load(tmp_path, MINIMAL + "hand_over: true\nhealth_directory: health\n")
    assert (asked.hand_over, asked.health_directory) == (True, tmp_path / "health")
    (line,) = problems(tmp_path, MINIMAL + "hand_over: perhaps\n")
    assert line == "agent.yaml:4: hand_over: expected true or false, found 'perhaps'"


def test_kind_of_keys(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).certificate_key is KeyKind.P256
    assert load(tmp_path, MINIMAL + "certificate_key: ed25519\n").certificate_key is KeyKind.ED25519
    (line,) = problems(tmp_path, MINIMAL + "certificate_key: rsa\n")
    assert line == "agent.yaml:4: certificate_key: expected p256 or p384 or ed25519, found 'rsa'"


PIN = "0123456789abcdef" * 4
SERVICE = f"""\
node: node1
mesh: mesh
ca:
  service: [https://10.0.0.1:15018, "https://[fd00::1]:15018"]
  trust_domain: example.org
  pin: {PIN}
  token_file: token
  keep: /var/lib/nodeseal
"""


def test_certificate_service(tmp_path: Path) -> None:
    services = ("https://10.0.0.1:15018", "https://[fd00::1]:15018")
    expected = ServiceCa(services, "example.org", (PIN,), None, tmp_path / "token", Path("/var/lib/nodeseal"))
    assert load(tmp_path, SERVICE).ca == expected
    one = SERVICE.replace(SERVICE.splitlines()[3], "  service: https://10.0.0.1:15018/").replace(
        "pin: ", "pin: sha256:"
    )
    assert load(tmp_path, one).ca == replace(expected, services=services[:1])
    both = SERVICE.replace(f"pin: {PIN}", f"pin: [{PIN}, 'sha256:{PIN[::-1]}']")
    assert load(tmp_path, both).ca == replace(expected, pins=(PIN, PIN[::-1]))
    assert load(tmp_path, SERVICE + "certificate_key: ed25519\n").certificate_key is KeyKind.ED25519


def test_certificate_service_of_the_cluster(tmp_path: Path) -> None:
    usual = ClusterCa(
        "nodeseal-system", "nodeseal-ca", "cluster.local", "nodeseal-trust-bundle",
        Path("/var/run/secrets/nodeseal/token"),
    )  # fmt: skip
    text = "node: node1\nmesh: mesh\nca: {kubernetes: nodeseal-system/nodeseal-ca}\n"
    assert load(tmp_path, text).ca == usual
    text = "node: n\nmesh: mesh\nca: {kubernetes: a/b, trust_domain: prod.example, bundle: c, token_file: t}\n"
    assert load(tmp_path, text).ca == ClusterCa("a", "b", "prod.example", "c", tmp_path / "t")


@pytest.mark.parametrize(
    ("ca", "message"),
    [
        ("{kubernetes: nodeseal-ca}", "ca.kubernetes: expected a Service, as namespace/name, found 'nodeseal-ca'"),
        ("{kubernetes: a/B}", "ca.kubernetes: expected a Service, as namespace/name, found 'a/B'"),
        ("{kubernetes: a/b/c}", "ca.kubernetes: expected a Service, as namespace/name, found 'a/b/c'"),
        ("{kubernetes: a/b, trust_domain: A}", "ca.trust_domain: expected a trust domain of a-z, 0-9"),
        ("{kubernetes: a/b, bundle: ../c}", "ca.bundle: expected a ConfigMap's name, found '../c'"),
        ("{kubernetes: a/b, pin: x}", "ca.pin: expected "),
        ("{kubernetes: a/b, service: https://x:1}", "ca: expected one of service, kubernetes, delivered, workload_api"),
    ],
)
def test_wrong_certificate_services_of_the_cluster(tmp_path: Path, ca: str, message: str) -> None:
    (line,) = problems(tmp_path, f"node: node1\nmesh: mesh\nca: {ca}\n")
    assert line.startswith(f"agent.yaml:3: {message}")


def test_delivered_certificates_and_issuers_of_namespaces(tmp_path: Path) -> None:
    text = """\
ca: ca
issuers:
- namespaces: [payments, cards]
  ca: {delivered: /run/c, trust_domain: example.org, path: "{service_account}.{namespace}", key: svid.key}
- namespaces: [legacy]
  ca: ca-of-legacy
"""
    loaded = load(tmp_path, f"node: node1\nmesh: mesh\n{text}")
    assert loaded.ca == OwnCa(tmp_path / "ca")
    pattern = "{service_account}.{namespace}"
    delivered = DeliveredCa(Path("/run/c"), "example.org", pattern, "tls.crt", "svid.key", "ca.crt")
    assert loaded.issuers == (
        NamespaceCa(("payments", "cards"), delivered),
        NamespaceCa(("legacy",), OwnCa(tmp_path / "ca-of-legacy")),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ca:\n", "ca: []\nrest:\n"), "ca: expected the path of a CA directory, or a mapping with one of service"),
        (
            ("  service:", "  servis:"),
            "ca: expected one of service, kubernetes, delivered, workload_api, found none of them",
        ),
        (("https://10", "http://10"), "ca.service[0]: expected an address such as https://10.0.0.1:8443, found"),
        (("1:15018,", "1,"), "ca.service[0]: expected an address such as https://10.0.0.1:8443, found"),
        (
            ("  trust_domain: example.org\n", ""),
            "ca.trust_domain: expected the mesh state's trust domain,",
        ),
        (("example.org", "Example"), "ca.trust_domain: expected a trust domain of a-z, 0-9, '.', '_' and '-', found"),
        (
            (f"  pin: {PIN}\n", ""),
            "ca: expected either 'pin' or 'anchor', by which",
        ),
        (
            ("  pin:", "  anchor: a\n  pin:"),
            "ca: expected either 'pin' or 'anchor', by which",
        ),
        ((PIN, "12"), "ca.pin: expected "),
        ((PIN, f"[{PIN}, 12]"), "ca.pin[1]: expected "),
        ((PIN, "[]"), "ca.pin: expected 1 to 8 of the service's keys"),
        (
            ("  keep:", "  delivered: /run/c\n  keep:"),
            "ca: expected one of service, kubernetes, delivered, workload_api, found service and",
        ),
        (("  keep:", "  kept:"), "ca.kept: expected 'keep', found the unknown field 'kept'"),
    ],
)
def test_wrong_certificate_service(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in SERVICE
    assert any(line.split(": ", 1)[1].startswith(message) for line in problems(tmp_path, SERVICE.replace(*change, 1)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {namespaces: [], ca: x}", "issuers[0].namespaces: expected at least one namespace, found none"),
        ("- {ca: x}", "issuers[0].namespaces: expected a list of namespaces, at least one, found nothing"),
        ("- {namespaces: [a]}", "issuers[0].ca: expected the path of a CA directory, or"),
        (
            "- {namespaces: [a], ca: x}\n- {namespaces: [b, a], ca: y}",
            "issuers[1].namespaces: expected namespaces that no other issuer has, found a, which issuers[0] has",
        ),
        (
            '- {namespaces: [a], ca: {delivered: d, trust_domain: t, path: "{pod}"}}',
            "issuers[0].ca.path: expected a relative path, with {namespace} and {service_account} in it, found",
        ),
        (
            "- {namespaces: [a], ca: {delivered: d, trust_domain: t, path: ../x}}",
            "issuers[0].ca.path: expected a relative path, with {namespace} and {service_account} in it, found",
        ),
        (
            "- {namespaces: [a], ca: {delivered: d, trust_domain: t, key: ../x}}",
            "issuers[0].ca.key: expected a file's name, found",
        ),
    ],
)
def test_wrong_issuers(tmp_path: Path, text: str, message: str) -> None:
    (line,) = problems(tmp_path, f"{MINIMAL}issuers:\n{text}\n")
    assert line.split(": ", 1)[1].startswith(message)


def test_plaintext_is_native_unless_it_is_to_go_through_the_core(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).plaintext is PlaintextWay.NATIVE
    assert load(tmp_path, MINIMAL + "plaintext: proxied\n").plaintext is PlaintextWay.PROXIED


def test_extent_of_the_mesh(tmp_path: Path) -> None:
    assert not load(tmp_path, MINIMAL).extent
    extent = load(tmp_path, f"{MINIMAL}mesh_networks: [10.0.0.0/8, 'fd00::/8']\noutside_mesh: [10.96.0.1]\n").extent
    assert [str(network) for network in extent.networks] == ["10.0.0.0/8", "fd00::/8"]
    assert [str(network) for network in extent.outside] == ["10.96.0.1/32"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mesh_networks: 10.0.0.0/8", "mesh_networks: expected a list of ranges of addresses"),
        ("mesh_networks: [pods]", "mesh_networks[0]: expected an address, or a range of addresses such as 10.0.0.0/24"),
        ("outside_mesh: [0.0.0.0/0]", "outside_mesh[0]: expected a smaller range of addresses, found 0.0.0.0/0"),
        ("outside_mesh: ['::/0']", "outside_mesh[0]: expected a smaller range of addresses, found ::/0"),
        ("outside_mesh: [10.0.0.1, 10.0.0.1]", "outside_mesh[1]: expected each once, found 10.0.0.1/32 again"),
        (
            "mesh_networks: [10.0.0.0/8]\noutside_mesh: [10.0.0.0/8]",
            "outside_mesh: expected addresses that 'mesh_networks' does not have as well, found 10.0.0.0/8",
        ),
    ],
)
def test_wrong_extent(tmp_path: Path, text: str, message: str) -> None:
    (line,) = problems(tmp_path, f"{MINIMAL}{text}\n")
    assert line.split(": ", 1)[1].startswith(message)


def test_every_problem_is_told_with_its_place(tmp_path: Path) -> None:
    text = "node: node1\nmesh: mesh\nworkers: 100\nsettle: soon\ncertificat_lifetime: 1h\n"
    assert problems(tmp_path, text) == [
        "agent.yaml:1: ca: expected the path of a CA directory, or a mapping with one of service, kubernetes, "
        "delivered and workload_api, found nothing",
        "agent.yaml:3: workers: expected a number of threads from 1 to 64, found the number 100",
        "agent.yaml:4: settle: expected a duration such as 30s, 10m, 24h or 7d, found 'soon'",
        "agent.yaml:5: certificat_lifetime: expected 'certificate_lifetime', "
        "found the unknown field 'certificat_lifetime'",
    ]


def test_limits_have_defaults_and_may_be_given_or_taken_away(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).limits == Limits(20_000, 256 << 20, 20_000)
    text = MINIMAL + "limits:\n  connections: 500\n  memory: 1GiB\n  new_connections: none\n"
    assert load(tmp_path, text).limits == Limits(500, 1 << 30, 0)
    assert load(tmp_path, MINIMAL + "limits: {memory: 0}\n").limits == Limits(memory=0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("limits: many", "limits: expected a mapping, found 'many'"),
        ("limits: {connections: -1}", "limits.connections: expected a number of connections, or none, found"),
        ("limits: {connections: '5'}", "limits.connections: expected a number of connections, or none, found '5'"),
        (
            "limits: {memory: 100KiB}",
            "limits.memory: expected a size from 1MiB such as 256MiB, or none, found",
        ),
        ("limits: {memory: 2MB}", "limits.memory: expected a size from 1MiB such as 256MiB, or none, found '2MB'"),
        ("limits: {new_connections: 1.5}", "limits.new_connections: expected a number of connections in a second"),
        ("limits: {conections: 5}", "limits.conections: expected 'connections', found the unknown field 'conections'"),
    ],
)
def test_a_wrong_limit_is_told_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    (line,) = problems(tmp_path, MINIMAL + text + "\n")
    assert line.startswith(f"agent.yaml:4: {problem}")


@pytest.mark.parametrize("value", ["1s", "0h", "400d"])
def test_certificate_lifetime_has_bounds(tmp_path: Path, value: str) -> None:
    (line,) = problems(tmp_path, MINIMAL + f"certificate_lifetime: {value}\n")
    assert line == f"agent.yaml:4: certificate_lifetime: expected a duration from 2s to 365d, found {value}"


@pytest.mark.parametrize("value", ["auto", "ebpf", "iptables"])
def test_capture_backend(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, MINIMAL + f"capture: {value}\n").capture is Choice(value)


def test_capture_backend_that_does_not_exist(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, MINIMAL + "capture: nftables\n")
    assert line == "agent.yaml:4: capture: expected auto or ebpf or iptables, found 'nftables'"


@pytest.mark.parametrize(
    ("value", "limit"), [("none", None), ("10s", timedelta(seconds=10)), ("1s", timedelta(seconds=1))]
)
def test_what_peers_do_not_acknowledge_has_a_limit(tmp_path: Path, value: str, limit: timedelta | None) -> None:
    loaded = load(tmp_path, MINIMAL + f"unacknowledged_limit: {value}\n")
    assert loaded.unacknowledged_limit == limit
    options = CoreOptions.of(loaded, "example.org")
    assert options.unacknowledged_ms == (0 if limit is None else limit.total_seconds() * 1000)


@pytest.mark.parametrize("value", ["0s", "999ms", "2h", "never"])
def test_limit_of_what_peers_do_not_acknowledge_has_bounds(tmp_path: Path, value: str) -> None:
    (line,) = problems(tmp_path, MINIMAL + f"unacknowledged_limit: {value}\n")
    assert line.startswith("agent.yaml:4: unacknowledged_limit: expected ")


@pytest.mark.parametrize("value", ["truthful", "early"])
def test_when_connections_are_made(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, MINIMAL).connect is None
    assert load(tmp_path, MINIMAL + f"connect: {value}\n").connect is Connect(value)
    (line,) = problems(tmp_path, MINIMAL + "connect: late\n")
    assert line == "agent.yaml:4: connect: expected truthful or early, found 'late'"


@pytest.mark.parametrize("why", [None, "no queue of packets can be had"])
def test_truthful_by_iptables_needs_what_parks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str | None
) -> None:
    monkeypatch.setattr(verify, "cannot_park", lambda: why)
    assert not load(tmp_path, MINIMAL).truthful
    assert not load(tmp_path, MINIMAL + "connect: early\n").truthful
    both = load(tmp_path, MINIMAL + "capture: iptables\nconnect: truthful\n")
    with pytest.raises(ConfigError) as caught:
        verify.verify(tmp_path / "agent.yaml", both)
    told = [line for line in str(caught.value).splitlines() if "connect" in line]
    expected = (
        f"{tmp_path}/agent.yaml:5: connect: truthful cannot be had with 'capture: iptables' here, say early, or have "
        f"eBPF capture: {why}"
    )
    assert told == ([] if why is None else [expected])


@pytest.mark.parametrize("name", ["preconnect", "warm_tunnels"])
def test_preconnect_has_a_bound(tmp_path: Path, name: str) -> None:
    (line,) = problems(tmp_path, MINIMAL + f"{name}: 2d\n")
    assert line == f"agent.yaml:4: {name}: expected a duration from 0s to 1d, found 2d"


def test_preconnect_is_read_under_its_former_name(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL + "warm_tunnels: 10m\n").preconnect == timedelta(minutes=10)
    (line,) = problems(tmp_path, MINIMAL + "preconnect: 5m\nwarm_tunnels: 10m\n")
    assert line == "agent.yaml:5: warm_tunnels: expected preconnect alone, which it was renamed to, found both"


def test_run_dir_must_leave_room_for_a_socket(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, MINIMAL + f"run_dir: /{'x' * 100}\n")
    assert "run_dir: expected a path of at most 90 bytes" in line


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a readable file"):
        config.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "fips"), [("", False), ("tls: {profile: default}\n", False), ("tls: {profile: fips}\n", True)]
)
def test_tls_has_a_profile(tmp_path: Path, text: str, fips: bool) -> None:
    assert CoreOptions.of(load(tmp_path, MINIMAL + text), "example.org").fips is fips


def test_tls_profile_that_does_not_exist(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, MINIMAL + "tls: {profile: FIPS}\n")
    assert line == "agent.yaml:4: tls.profile: expected default or fips, found 'FIPS'"


def test_profile_fips_has_no_ed25519(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, MINIMAL + "tls: {profile: fips}\ncertificate_key: ed25519\n")
    assert line == "agent.yaml:5: certificate_key: expected p256 or p384 with the profile fips of 'tls', found ed25519"


def test_profile_fips_refuses_a_ca_of_ed25519(tmp_path: Path) -> None:
    asked = load(tmp_path, "node: node1\nmesh: mesh\nca: ca\ntls: {profile: fips}\n")
    init_authority(tmp_path / "ca", trust_domain="example.org", kind=KeyKind.ED25519, now=datetime.now(UTC))
    with pytest.raises(ConfigError) as caught:
        verify.verify(tmp_path / "agent.yaml", asked)
    (told,) = [line for line in str(caught.value).splitlines() if "Ed25519" in line]
    assert told.startswith(
        f"{tmp_path}/agent.yaml:4: tls: the CA in {tmp_path}/ca cannot be used: CN=nodeseal intermediate "
    )


def test_profile_fips_needs_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    asked = load(tmp_path, MINIMAL + "tls: {profile: fips}\n")
    with pytest.raises(ConfigError) as caught:
        verify.verify(tmp_path / "agent.yaml", asked)
    (told,) = [line for line in str(caught.value).splitlines() if ": tls: " in line]
    assert told.startswith(
        f"{tmp_path}/agent.yaml:4: tls: profile fips cannot be had: OpenSSL's FIPS module cannot be loaded: "
    )


KUBERNETES = "node: node1\nmesh: {kubernetes: {trust_domain: cluster.local}}\nca: /etc/nodeseal/ca\n"


def test_mesh_state_may_be_kubernetes(tmp_path: Path) -> None:
    assert load(tmp_path, KUBERNETES).mesh == KubernetesMesh("cluster.local", "nodeseal-system")


def test_agent_in_no_pod_names_the_api_server(tmp_path: Path) -> None:
    text = KUBERNETES.replace(
        "cluster.local", "cluster.local, namespace: mesh, server: 'https://10.0.0.1:6443/', ca: ca.pem, token: /t"
    )
    outside = Outside("https://10.0.0.1:6443", tmp_path / "ca.pem", Path("/t"))
    assert load(tmp_path, text).mesh == KubernetesMesh("cluster.local", "mesh", outside)


@pytest.mark.parametrize(
    ("mesh", "problem"),
    [
        ("{kubernetes: {}}", "mesh.kubernetes.trust_domain: expected the mesh's trust domain"),
        ("{kubernetes: {trust_domain: 'A B'}}", "mesh.kubernetes.trust_domain: expected a trust domain of a-z"),
        ("{kubernetes: {trust_domain: a, server: 'http://x'}}", "mesh.kubernetes.server: expected an address such as"),
        ("{kubernetes: {trust_domain: a, token: /t}}", "mesh.kubernetes.server: expected the API server's address"),
        ("{kubernetes: {trust_domain: a, servre: x}}", "found the unknown field 'servre'"),
        ("{kubernets: {}}", "found the unknown field 'kubernets'"),
        ("[a]", "mesh: expected the path of a directory, or a mapping with 'kubernetes', found a list"),
    ],
)
def test_mistake_in_the_mesh_is_named(tmp_path: Path, mesh: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, f"node: node1\nmesh: {mesh}\nca: /etc/nodeseal/ca\n")
    assert problem in str(raised.value)


def test_name_of_the_node_may_come_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nameless = MINIMAL.replace("node: node1\n", "")
    with pytest.raises(ConfigError, match="node: expected a name, found nothing"):
        load(tmp_path, nameless)
    monkeypatch.setenv("NODESEAL_NODE", "node7")
    assert load(tmp_path, nameless).node == "node7"
    assert load(tmp_path, MINIMAL).node == "node1"
    monkeypatch.setenv("NODESEAL_NODE", "no name")
    with pytest.raises(ConfigError, match="node: expected a name in NODESEAL_NODE, found 'no name'"):
        load(tmp_path, nameless)
