"""Which backend captures whom, by the journal's entry."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeseal.capture.backends.host_ebpf import HostEbpfBackend
from nodeseal.capture.backends.iptables import IptablesBackend
from nodeseal.capture.backends.pod_ebpf import PodEbpfBackend
from nodeseal.capture.backends.selection import Selection
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import BackendName, Entry, Journal


def entry(name: str = "default/vector", *, backend: BackendName = "ebpf", cgroup: str = "", cookie: int = 1) -> Entry:
    return Entry(
        name=name,
        netns="/proc/1/ns/net",
        cookie=cookie,
        inode=4026532000,
        addresses=["10.0.0.5"],
        state="capturing",
        table=20051,
        rule_priority=100,
        marks=[],
        backend=backend,
        cgroup=cgroup,
    )


@pytest.mark.parametrize(
    ("backend", "cgroup", "wanted"),
    [
        ("ebpf", "", PodEbpfBackend),
        ("ebpf", "/system.slice/vector.service", HostEbpfBackend),
        ("iptables", "", IptablesBackend),
    ],
)
def test_backend_goes_by_the_entry(tmp_path: Path, backend: BackendName, cgroup: str, wanted: type) -> None:
    assert isinstance(Selection(tmp_path).of(entry(backend=backend, cgroup=cgroup)), wanted)


def test_iptables_captures_no_process_of_the_node(tmp_path: Path) -> None:
    with pytest.raises(
        CaptureError, match=r"^cannot capture default/vector: processes of the node are captured by eBPF"
    ):
        Selection(tmp_path).of(entry(backend="iptables", cgroup="/system.slice/vector.service"))


def test_neighbours_are_processes_in_the_same_namespace(tmp_path: Path) -> None:
    one, other = entry("default/one", cgroup="/one"), entry("default/other", cgroup="/other")
    elsewhere, pod = entry("default/elsewhere", cgroup="/one", cookie=2), entry("default/pod")
    journal = Journal(tmp_path / "capture.json", {item.name: item for item in (one, other, elsewhere, pod)})
    assert journal.neighbours(one) == [other]
    assert journal.neighbours(elsewhere) == journal.neighbours(pod) == []


def test_process_that_is_not_in_the_journal_yet_has_neighbours(tmp_path: Path) -> None:
    there = entry("default/there", cgroup="/there")
    journal = Journal(tmp_path / "capture.json", {there.name: there})
    assert journal.neighbours(entry("default/new", cgroup="/new")) == [there]
