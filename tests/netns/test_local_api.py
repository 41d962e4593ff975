"""A node's agent, asked with curl as docs/reference/local-api.md says."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from nodeseal import __version__
from support.connection import echoes, endpoint
from support.lab import RunningLab
from support.patience import wait_for
from support.programs import Programs

pytestmark = pytest.mark.fast


def curl(lab: RunningLab, node: str, path: str, *arguments: str) -> str:
    """What it prints for http://node/v1/PATH."""
    command = ["curl", "-sS", "--max-time", "30", "--unix-socket", str(lab.run_dir(node) / "agent.sock"), *arguments]
    return subprocess.run(
        [*command, f"http://node/v1/{path}"], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def connections(lab: RunningLab, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(curl(lab, "node1", f"connections?{query}"))["connections"]
    return rows


def test_who_answers(lab: RunningLab) -> None:
    assert json.loads(curl(lab, "node1", "version")) == {"version": __version__, "pid": lab.agent_pid("node1")}
    status = json.loads(curl(lab, "node1", "status"))
    assert (status["node"], status["core"]["state"]) == ("node1", "running")


def test_connections_of_one_workload_that_are_open(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client, closed = (programs.dial("shipper", server.address) for _ in range(2))
    assert echoes(client)
    assert echoes(closed)
    closed.close()
    ends = {endpoint(one) for one in (client.getsockname(),)}
    wait_for(
        lambda: {row["source"] for row in connections(lab, "live=true&workload=default/shipper")} == ends,
        "only what is open is listed",
    )
    (row,) = connections(lab, "live=true&workload=default/shipper&direction=outbound")
    assert (row["state"], row["mtls"], row["peer"]) == ("open", True, lab.identity("pipeline"))
    assert connections(lab, "live=true&workload=default/shipper&direction=inbound") == []
    assert {row["state"] for row in connections(lab, "workload=default/shipper")} == {"open", "closed"}


@pytest.mark.parametrize("limit", [1, 3])
def test_pages_have_every_connection_once(lab: RunningLab, programs: Programs, limit: int) -> None:
    server = programs.serve("pipeline")
    clients = [programs.dial("shipper", server.address) for _ in range(7)]
    assert all(map(echoes, clients))
    found, after = [], ""
    while after is not None:
        page = json.loads(curl(lab, "node1", f"connections?live=true&limit={limit}{after and f'&after={after}'}"))
        assert len(page["connections"]) <= limit
        found += [row["source"] for row in page["connections"]]
        after = page["next"]
    mine = {endpoint(client.getsockname()) for client in clients}
    assert sorted(one for one in found if one in mine) == sorted(mine)


def test_stream_has_a_line_for_each(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    lines = curl(lab, "node1", "connections", "-H", "Accept: application/x-ndjson").splitlines()
    assert endpoint(client.getsockname()) in {json.loads(line)["source"] for line in lines}


def test_core_is_replaced(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    before = lab.core_pid("node1")
    answer = json.loads(curl(lab, "node1", "core/upgrade", "-X", "POST"))
    assert (answer["before"]["pid"], answer["pid"]) == (before, lab.core_pid("node1"))
    assert echoes(client)
