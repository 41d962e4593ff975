"""`nodeseal check` on this machine, with everything and with something taken away; it changes nothing."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeseal.capture import features
from nodeseal.capture.bpf import compile as compiler
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.features import Feature, lacking
from nodeseal.linux import bpf, cgroups, conntrack, xtables
from support.namespaces import iptables_rules
from support.pods import compiled
from support.process import nodeseal

Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "compile_in_child", compiled)


def look() -> dict[str, Feature]:
    return {one.name: one for one in features.survey(None)}


def test_everything_is_here() -> None:
    """As the tests of both backends need it."""
    found = look()
    assert [one for one in found.values() if not one.found] == []
    for name in ("BPF steer_ingress", "TPROXY IPv4", "TPROXY IPv6", "conntrack marks IPv6", "policy routing IPv6"):
        assert found[name].found


@pytest.mark.alone  # nobody else makes a namespace meanwhile
def test_nothing_is_changed_and_nothing_left_open() -> None:
    before = iptables_rules(), len(list(Path("/proc/self/fd").iterdir())), sorted(Path("/run/netns").iterdir())
    look()
    assert (iptables_rules(), len(list(Path("/proc/self/fd").iterdir()))) == before[:2]
    assert {path for path in Path("/run/netns").iterdir() if path.name.startswith("nodeseal")} <= set(before[2])


def no_bcc(patch: pytest.MonkeyPatch) -> None:
    def refuse() -> compiler.Compiled:
        raise CaptureError("the Python module bcc is missing: apt-get install python3-bpfcc")

    patch.setattr(features, "compile_in_child", refuse)


def no_cgroup(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cgroups, "mount_points", lambda kind, process="self": [])


def no_sk_lookup(patch: pytest.MonkeyPatch) -> None:
    original = bpf.program_load

    def load(kind: int, attach_type: int, instructions: bytes, name: str) -> int:
        if kind == bpf.PROG_SK_LOOKUP:
            raise bpf.VerifierError(errno.EINVAL, "")
        return original(kind, attach_type, instructions, name)

    patch.setattr(bpf, "program_load", load)


def no_iptables(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(xtables, "_find", lambda command: None)


def no_tproxy(patch: pytest.MonkeyPatch) -> None:
    original = xtables.restore

    def restore(program: str, text: str) -> None:
        if "TPROXY" in text:
            raise CaptureError(f"{program}-restore: line 2: RULE_APPEND failed (No such file or directory)")
        original(program, text)

    patch.setattr(xtables, "restore", restore)


def no_ctnetlink(patch: pytest.MonkeyPatch) -> None:
    def refuse(mark: int) -> set[object]:
        raise CaptureError("cannot list conntrack's entries (nf_conntrack_netlink): Protocol not supported")

    patch.setattr(conntrack, "marked_connections", refuse)


@pytest.mark.parametrize(
    ("take_away", "backend", "missing"),
    [
        (no_bcc, "ebpf", ["BPF compiler", *(f"BPF {name}" for name in features.PROGRAMS)]),
        (no_cgroup, "ebpf", ["cgroup v2"]),
        (no_sk_lookup, "ebpf", ["BPF assign_lookup", "BPF lookup_host"]),
        (
            no_iptables,
            "iptables",
            [
                *("iptables IPv4", "TPROXY IPv4", "marks IPv4", "conntrack marks IPv4", "conntrack states IPv4"),
                *("address types IPv4", "all rules IPv4"),
            ],
        ),
        (no_tproxy, "iptables", ["TPROXY IPv4", "all rules IPv4"]),
        (no_ctnetlink, "iptables", ["conntrack's list"]),
    ],
)
def test_what_is_missing_is_found_and_the_other_backend_is_not_concerned(
    monkeypatch: pytest.MonkeyPatch, take_away: Patch, backend: str, missing: list[str]
) -> None:
    take_away(monkeypatch)
    found = list(features.survey(None))
    assert [one.name for one in lacking(found, "ebpf")] == (missing if backend == "ebpf" else [])
    assert [one.name for one in lacking(found, "iptables")] == (missing if backend == "iptables" else [])


def test_command_on_this_machine() -> None:
    result = nodeseal("check", "-o", "json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["chosen"] == "ebpf"


def test_command_without_root() -> None:
    """It says so, and cannot know more."""
    reads = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search")
    result = nodeseal(
        "check", "-o", "json", prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reads)
    )
    answer = json.loads(result.stdout)
    assert (result.returncode, answer["chosen"]) == (1, None)
    detail = {one["name"]: one["detail"] for one in answer["features"] if not one["found"]}
    assert detail["privileges"].endswith("lacks CAP_NET_ADMIN, CAP_SYS_ADMIN; run as root")
