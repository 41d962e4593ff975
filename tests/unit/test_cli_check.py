"""What `nodeseal check` shows, and what it concludes from what it found; golden files as in test_cli_tables.py."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.features import Feature, For
from nodeseal.capture.reservations import EARLY
from nodeseal.cli import check, table
from nodeseal.cli.main import main
from nodeseal.cli.workloads import Selected
from nodeseal.contracts.output import MachineCheck
from nodeseal.contracts.status import PlainClientRow, Status, WorkloadRow
from nodeseal.daemon import check as checking
from nodeseal.daemon.check import Findings, conclude
from nodeseal.local.tls_profile import TlsProfile

Golden = Callable[[str, str], None]

NO_CGROUP = "no cgroup v2 tree is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified); on a host with "
NOT_INSTALLED = "iptables-restore is not installed: apt-get install iptables, or set `capture: ebpf` in the agent's "


def feature(name: str, use: For, detail: str, *, found: bool = True, needed: bool = True) -> Feature:
    return Feature(name, use, found, detail, needed)


def machine(*without: str) -> list[Feature]:
    """A machine with everything but the features of these names."""
    missing = {
        "cgroup v2": NO_CGROUP + "cgroup v1 it may stand beside it",
        "iptables IPv4": NOT_INSTALLED + "configuration",
        "core": "the compiled core cannot be loaded (No module named 'nodeseal._core'): install nodeseal again",
        "NFQUEUE": "connections are early: no queue of packets can be had (CONFIG_NETFILTER_NETLINK_QUEUE)",
        "TPROXY IPv6": "ip6tables-nft-restore: line 2: RULE_APPEND failed (No such file or directory)",
    }
    features = [
        feature("core", "both", "compiled and loadable"),
        feature("privileges", "both", "user 0 with CAP_NET_ADMIN, CAP_SYS_ADMIN"),
        feature("cgroup v2", "ebpf", "/sys/fs/cgroup"),
        feature("BPF mark_connect4", "ebpf", "the kernel takes it"),
        feature("iptables IPv4", "iptables", "iptables-nft, where a namespace does not use the other flavour"),
        feature("TPROXY IPv6", "iptables", "the kernel takes it", needed=False),
        feature("NFQUEUE", "iptables", "what workloads dial can wait until the far side is there", needed=False),
    ]
    return [
        Feature(one.name, one.use, False, missing[one.name], one.needed) if one.name in without else one
        for one in features
    ]


@pytest.mark.parametrize(
    ("wanted", "without", "chosen"),
    [
        (Choice.AUTO, (), "ebpf"),
        (Choice.AUTO, ("cgroup v2",), "iptables"),
        (Choice.AUTO, ("iptables IPv4",), "ebpf"),
        (Choice.AUTO, ("cgroup v2", "iptables IPv4"), None),
        (Choice.AUTO, ("core",), None),
        (Choice.AUTO, ("cgroup v2", "TPROXY IPv6"), "iptables"),
        (Choice.EBPF, ("cgroup v2",), None),
        (Choice.EBPF, ("iptables IPv4",), "ebpf"),
        (Choice.IPTABLES, (), "iptables"),
        (Choice.IPTABLES, ("iptables IPv4",), None),
    ],
)
def test_backend_that_is_chosen(wanted: Choice, without: tuple[str, ...], chosen: str | None) -> None:
    found = conclude(machine(*without), wanted)
    assert found.chosen == chosen
    for name in without:
        assert chosen is not None or name in found.why


@pytest.mark.parametrize(
    ("wanted", "without", "chosen"),
    [
        (Choice.AUTO, (), "ebpf"),
        (Choice.AUTO, ("NFQUEUE",), "ebpf"),
        (Choice.AUTO, ("cgroup v2",), "iptables"),
        (Choice.AUTO, ("cgroup v2", "NFQUEUE"), None),
        (Choice.IPTABLES, ("NFQUEUE",), None),
    ],
)
def test_who_asks_for_truthful_connections_is_not_given_early_ones(
    wanted: Choice, without: tuple[str, ...], chosen: str | None
) -> None:
    found = conclude(machine(*without), wanted, truthful=True)
    assert found.chosen == chosen
    if chosen is None:
        assert "NFQUEUE" in found.why
        assert conclude(machine(*without), wanted).chosen == "iptables"


def test_early_connections_are_a_reservation_where_nothing_can_park() -> None:
    def reserved(*without: str) -> bool:
        return EARLY in conclude(machine(*without), Choice.AUTO).reservations

    assert [reserved(*without) for without in ((), ("NFQUEUE",), ("cgroup v2",))] == [False] * 3
    assert reserved("cgroup v2", "NFQUEUE")


@pytest.mark.parametrize(
    ("name", "wanted", "without"),
    [
        ("healthy", Choice.AUTO, ()),
        ("iptables", Choice.AUTO, ("cgroup v2", "TPROXY IPv6")),
        ("iptables_early", Choice.IPTABLES, ("NFQUEUE",)),
        ("nothing", Choice.AUTO, ("core", "cgroup v2", "iptables IPv4")),
        ("strict", Choice.EBPF, ("cgroup v2",)),
    ],
)
def test_findings_for_a_person(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, name: str, wanted: Choice, without: tuple[str, ...]
) -> None:
    monkeypatch.setattr(table, "width", lambda: 100)
    text = check.text(conclude(machine(*without), wanted))
    assert max(len(line) for line in text.splitlines()) <= 100
    golden(f"check_{name}.txt", text + "\n")


def test_what_will_not_work_comes_last(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "width", lambda: 100)
    found = conclude(machine(), Choice.IPTABLES)
    line = "default/siem is strict and captured by iptables: probes of this node (the kubelet's) are refused there"
    found = dataclasses.replace(found, warnings=(line,))
    golden("check_warnings.txt", check.text(found) + "\n")
    assert check.row(found).warnings == [line]


@pytest.mark.parametrize(("without", "status"), [((), 0), (("cgroup v2",), 0), (("core",), 1)])
def test_exit_status_says_whether_an_agent_could_capture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], without: tuple[str, ...], status: int
) -> None:
    def found(_config: object) -> Findings:
        return conclude(machine(*without), Choice.AUTO)

    monkeypatch.setattr(checking, "check", found)
    assert main(["check", "-o", "json"]) == status
    answer = json.loads(capsys.readouterr().out)
    assert answer["wanted"] == "auto"
    assert answer["chosen"] == (None if status else "iptables" if without else "ebpf")
    assert bool(answer["reservations"]) == (not status)
    assert [item["name"] for item in answer["features"] if not item["found"]] == list(without)


def test_wrong_configuration_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("site") / "agent.yaml"
    path.write_text("node: node1\nmesh: m\nca: c\ncapture: both\n")
    assert main(["check", "--config", str(path)]) == 1
    assert "capture: expected auto or ebpf or iptables, found 'both'" in capsys.readouterr().err


def test_congestion_control_that_is_not_available() -> None:
    (found,) = [one for one in checking._process_features("vegas2") if one.name == "congestion control"]
    assert (found.found, found.needed) == (False, False)
    assert found.detail.startswith("vegas2 is not available, only ")


def test_few_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking.resource, "getrlimit", lambda _what: (1024, 4096))
    (found,) = [one for one in checking._process_features("") if one.name == "file descriptors"]
    assert (found.found, found.needed) == (False, False)
    assert found.detail.startswith("at most 4096, and each connection through the core takes two")


def test_provider_of_tls_is_named_with_its_version() -> None:
    (found,) = [one for one in checking._process_features("") if one.name == "OpenSSL"]
    assert found.found
    assert re.fullmatch(r"OpenSSL 3\.\S+; TLS by OpenSSL Default Provider 3\.\S+, profile default", found.detail)


def test_fips_module_that_is_not_there_is_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    (found,) = [one for one in checking._process_features("", TlsProfile.FIPS) if one.name == "OpenSSL"]
    assert not found.found
    assert found.detail.startswith("OpenSSL's FIPS module cannot be loaded: ")


def test_clients_that_strict_would_refuse_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = PlainClientRow("192.0.2.7", None, 3, 61.0)
    known = PlainClientRow("10.0.0.9", "shop/job", 1, 5.0)
    row = WorkloadRow("shop/cart", mode="permissive", phase="enrolled", capture="ebpf", plain_clients=[stranger, known])
    rows = [
        row,
        structs.replace(row, workload="shop/safe", mode="strict"),
        structs.replace(row, workload="shop/out", phase="absent"),
        structs.replace(row, workload="other/cart"),
    ]
    monkeypatch.setattr(check, "ask", lambda *_: Status("node1", workloads=rows))
    refuses, unknown = check.strict_refuses(Path("/run/nodeseal"), Selected.of(["shop/*"]))
    assert check.strict_text(MachineCheck(strict_refuses=refuses, strict_unknown=unknown)) == [
        "strict mode would refuse these clients, seen without mTLS in the last day:",
        "  - shop/cart: 192.0.2.7, 3 connections, the last 1m01s ago",
        "  - shop/cart: 10.0.0.9 (shop/job), 1 connection, the last 5s ago",
    ]


def test_why_clients_of_strict_may_be_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = WorkloadRow("shop/cart", mode="permissive", phase="enrolled", capture="iptables")
    monkeypatch.setattr(check, "ask", lambda *_: Status("node1", workloads=[row]))
    refuses, unknown = check.strict_refuses(tmp_path, Selected())
    assert (refuses, unknown) == ([], "captured by iptables, which notes no clients: shop/cart")
    assert "strict mode may refuse others" in check.strict_text(MachineCheck(strict_unknown=unknown))[0]
    monkeypatch.undo()
    _, unknown = check.strict_refuses(tmp_path, Selected())
    assert unknown is not None
    assert str(tmp_path) in unknown, "no agent answers there"


def test_that_strict_would_refuse_nobody_is_said() -> None:
    assert check.strict_text(MachineCheck()) == ["strict mode would refuse no client that was seen in the last day"]
