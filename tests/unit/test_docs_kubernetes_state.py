"""docs/kubernetes-state.md: its example is read, and its numbers are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import yaml

from nodeseal.manifests.chart import Chart
from nodeseal.mesh.model import Mode
from nodeseal.sources.kubernetes import node_status
from nodeseal.sources.kubernetes.mesh_objects import MOST_OBJECTS, MOST_PROBLEMS, MeshEndpoints, read_endpoints
from nodeseal.sources.kubernetes.renewals import RENEWAL_S, SILENT_S
from nodeseal.sources.kubernetes.shards import ROOM

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "kubernetes-state.md").read_text()
TEXT = " ".join(PAGE.split())


def test_example_is_read() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    found = msgspec.json.decode(json.dumps(yaml.safe_load(example)), type=MeshEndpoints)
    cart, web = read_endpoints(found).workloads
    assert (cart.key.name, len(cart.addresses)) == ("cart-0", 2)
    assert web.mode is Mode.STRICT
    assert web.exclude.inbound.ports


def test_numbers_are_those_of_the_code() -> None:
    assert f"An object gets {ROOM} workloads." in TEXT
    assert f"| **{ROOM}** |" in PAGE
    assert f"a number from 0 to {MOST_OBJECTS - 1}" in TEXT
    assert f"the first {MOST_PROBLEMS} problems in full" in TEXT
    assert SILENT_S == 600
    assert "was not seen to change for 10 minutes" in TEXT
    assert RENEWAL_S == 120
    assert "renews its MeshNode every two minutes" in TEXT
    assert node_status._AT_ONCE == 4
    assert "no more than four times in a row" in TEXT


def test_columns_are_those_that_are_installed() -> None:
    chart = Chart()
    manifests = chart.manifests("nodeseal-system", chart.values([]))
    (found,) = (one for one in manifests if one.name == "meshnodes.nodeseal.io")
    (version,) = yaml.safe_load(found.text)["spec"]["versions"]
    names = [one["name"].upper() for one in version["additionalPrinterColumns"]]
    (header,) = re.findall(r"^NAME .*$", PAGE, re.MULTILINE)
    assert header.split() == ["NAME", *names]
