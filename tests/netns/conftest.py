"""Labs that tests of this directory share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent import use_compiled
from support.failure_logs import pytest_runtest_makereport  # noqa: F401  (a hook)
from support.hosts import Host
from support.lab import RunningLab, running_lab
from support.pods import compiled
from support.programs import Programs


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """See `programs`."""
    versions = getattr(metafunc.module, "IP_VERSIONS", None)
    if versions is not None and "programs" in metafunc.fixturenames:
        metafunc.parametrize("programs", versions, ids=[f"ipv{version}" for version in versions], indirect=True)


@pytest.fixture(scope="session", autouse=True)
def quick_agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The BPF programs are compiled once. Agents that tests start by nodeseal's command line compile their own."""
    if os.geteuid() != 0:
        yield
        return
    with use_compiled(compiled(), tmp_path_factory.mktemp("bpf") / "compiled.json"):
        yield


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Two nodes with IPv6, and everything enrolled but `intruder` on node2 and `guest` on node1. Tests that use it
    leave the mesh state, the agents and the cores as they are."""
    with running_lab(tmp_path_factory.mktemp("lab"), more_pods=("guest:node1:plain",), ipv6=True) as lab:
        yield lab


@pytest.fixture
def lab_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For a lab of one test; short, because of the Unix sockets in it."""
    return tmp_path_factory.mktemp("labs") / "r"


@pytest.fixture
def programs(lab: RunningLab, request: pytest.FixtureRequest) -> Iterator[Programs]:
    """The sockets of one test, closed at its end. They use IPv4; in a module with IP_VERSIONS each test runs once for
    each of them."""
    with Programs(lab, getattr(request, "param", 4)) as programs:
        yield programs


@pytest.fixture
def host(lab: RunningLab, programs: Programs) -> Host:
    """Processes on node1, in a module whose lab has support.hosts.HOSTS."""
    return Host(lab, programs)
