"""Entries in lists of network plugins, as texts: what is not ours stays as it is, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from nodeseal.cni import network_list
from nodeseal.cni.network_list import ListError

ENTRY = {"type": "nodeseal-cni", "socket": "/run/nodeseal/cni.sock", "on_failure": "closed"}

CALICO = """{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "x-unknown" : [1,2 , 3],
  "plugins": [
    {
      "type": "calico",
      "log_level": "info"
    },
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}
  ]
}
"""
KINDNET = '{"cniVersion":"1.0.0","plugins":[{"type":"ptp","ipam":{"type":"host-local"}}],"name":"kindnet"}'
TABS = '{\r\n\t"cniVersion": "1.1.0",\r\n\t"plugins": [\r\n\t\t{"type": "bridge"}\r\n\t]\r\n}'
TWICE = '{"plugins": "?", "cniVersion": "0.2.0", "cniVersion": "1.0.0", "plugins": [{"type": "a"}], "\\u0070lug": []}'


def is_ours(plugin: Mapping[str, Any]) -> bool:
    return bool(plugin.get("socket") == ENTRY["socket"])


@pytest.mark.parametrize("text", [CALICO, KINDNET, TABS, TWICE])
def test_entry_is_put_behind_the_last_and_taken_out_again(text: str) -> None:
    changed = network_list.with_entry(text, ENTRY, is_ours)
    before = json.loads(text)
    assert json.loads(changed) == {**before, "plugins": [*before["plugins"], ENTRY]}
    assert network_list.has_entry(changed, is_ours)
    assert network_list.with_entry(changed, ENTRY, is_ours) == changed
    assert network_list.without_entry(changed, is_ours) == text


def test_entry_is_indented_as_what_is_there() -> None:
    changed = network_list.with_entry(CALICO, ENTRY, is_ours)
    assert '"portMappings": true}},\n    {\n      "type": "nodeseal-cni",\n' in changed
    assert ',\r\n\t\t{\r\n\t\t\t"type": "nodeseal-cni",' in network_list.with_entry(TABS, ENTRY, is_ours)


def test_former_entries_of_ours_give_way_to_one() -> None:
    former = {**ENTRY, "on_failure": "open"}
    other = {**ENTRY, "socket": "/run/other/cni.sock"}
    plugins = [former, {"type": "bridge"}, other, former, {"type": "portmap"}, former]
    text = json.dumps({"cniVersion": "1.0.0", "plugins": plugins})
    changed = json.loads(network_list.with_entry(text, ENTRY, is_ours))
    assert changed["plugins"] == [{"type": "bridge"}, other, {"type": "portmap"}, ENTRY]


def test_entry_stays_where_another_tool_has_put_something_behind_it() -> None:
    text = json.dumps({"cniVersion": "1.0.0", "plugins": [{"type": "bridge"}, ENTRY, {"type": "tuning"}]})
    assert network_list.with_entry(text, ENTRY, is_ours) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ('{"plugins": [}', "no JSON"),
        ("\ufeff{}", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no JSON object"),
        ('{"cniVersion": "1.0.0"}', "no list"),
        ('{"cniVersion": "1.0.0", "plugins": {}}', "no list"),
        ('{"cniVersion": "1.0.0", "plugins": []}', "no plugin"),
        ('{"cniVersion": "0.3.0", "plugins": [{}]}', "cniVersion"),
        ('{"plugins": [{}]}', "cniVersion"),
    ],
)
def test_what_is_no_list_is_refused(text: str, why: str) -> None:
    with pytest.raises(ListError, match=why):
        network_list.with_entry(text, ENTRY, is_ours)


def test_a_single_plugin_becomes_a_list() -> None:
    conf = '{"cniVersion": "0.4.0", "name": "net", "type": "bridge", "x": 1}'
    made = network_list.converted(conf, "10-bridge.conf", ENTRY)
    assert json.loads(made) == {
        "cniVersion": "0.4.0",
        "name": "net",
        "nodeseal": "10-bridge.conf",
        "plugins": [json.loads(conf), ENTRY],
    }
    assert network_list.converted_from(made) == "10-bridge.conf"
    assert network_list.converted_from(CALICO) is None
    with pytest.raises(ListError, match="no plugin"):
        network_list.converted("{}", "a.conf", ENTRY)


def test_plugin_is_found_in_parts_for_another_tool() -> None:
    assert network_list.names_plugin('{"delegates": [{"plugins": [{"type": "nodeseal-cni"}]}]} rubbish')
    assert not network_list.names_plugin(CALICO)
