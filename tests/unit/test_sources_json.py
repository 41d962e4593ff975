"""The bulk form of the mesh state: what is written in JSON reads as the same in YAML, and so do its mistakes."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from nodeseal.documents import bulk
from nodeseal.documents.bulk import NotTakenError, read_bulk
from nodeseal.documents.document import Content
from nodeseal.documents.readers import READERS
from nodeseal.mesh.model import KINDS, Mesh
from nodeseal.sources.directory.source import load
from nodeseal.sources.directory.state import StateFile
from nodeseal.sources.source import MeshStateError

PLAIN: dict[str, Any] = {
    "name": "shipper",
    "namespace": "logs",
    "service_account": "robot",
    "node": "node1",
    "address": "10.0.0.1",
    "netns": "/run/netns/shipper",
    "enrolled": True,
    "mode": "strict",
    "on_failure": "open",
}
WORKLOADS: list[dict[str, Any]] = [
    PLAIN,
    {"name": "7", "node": "on", "address": "fd00::", "connect": "early", "trust_domain": "example.org"},
    {"name": "both", "node": "node1", "addresses": ["fd00::4", "10.0.0.4"], "netns": "both", "enrolled": False},
    {
        "name": "limited",
        "node": "node1",
        "addresses": ["10.0.0.5"],
        "limits": {"connections": 5, "memory": "64MiB", "new_connections": "none"},
        "exclude": {"inbound": {"ports": [80, "90-99"], "from": ["10.0.0.0/8"]}, "outbound": {"to": ["fd00::/8"]}},
    },
    {
        "name": "process",
        "node": "node1",
        "addresses": ["fd00::6", "10.0.0.6"],
        "host": {"cgroup": "/system.slice/a.service", "ports": [9000]},
    },
]
SERVICES: list[dict[str, Any]] = [
    {
        "name": "front",
        "namespace": "logs",
        "address": "10.9.0.1",
        "ports": [{"port": 80, "target_port": 8080}, {"port": 443}],
        "endpoints": ["shipper", "default/7"],
    },
    {"name": "back", "addresses": ["10.9.0.2", "fd00::9"], "ports": [], "endpoints": []},
]
STATE: dict[str, Any] = {"trust_domain": "example.org", "workloads": WORKLOADS, "services": SERVICES}


def load_state(directory: Path, **files: str | bytes) -> Mesh:
    for name, text in files.items():
        path = directory / name.replace("_", ".")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(directory)


def complaints(directory: Path, **files: str | bytes) -> list[str]:
    with pytest.raises(MeshStateError) as caught:
        load_state(directory, **files)
    return str(caught.value).splitlines()


def without(entry: dict[str, Any], *names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**entry, **changes}.items() if name not in names}


def test_every_kind_that_files_may_hold_has_a_reader() -> None:
    assert list(READERS) == [name for name in KINDS if name != "nodes"]


@pytest.mark.parametrize("indent", [None, 1])
def test_json_says_the_same_as_yaml(tmp_path: Path, indent: int | None) -> None:
    for name in ("json", "yaml"):
        (tmp_path / name).mkdir()
    text = json.dumps(STATE, indent=indent)
    mesh = load_state(tmp_path / "json", m_json=text)
    assert (len(mesh.workloads), len(mesh.services)) == (5, 2)
    assert mesh == load_state(tmp_path / "yaml", m_yaml=yaml.safe_dump(STATE))
    assert list(read_bulk(text.encode()).lists) == ["workloads", "services"]


def test_json_and_yaml_are_put_together(tmp_path: Path) -> None:
    text = "trust_domain: example.org\nservices: [{name: s, address: 10.9.0.1, ports: [], endpoints: [7]}]\n"
    mesh = load_state(tmp_path, m_yaml=text.replace("[7]", "['7']"), n_JSON=json.dumps({"workloads": WORKLOADS}))
    assert (len(mesh.workloads), len(mesh.services)) == (5, 1)


def test_the_entries_know_the_fields_that_the_readers_know(tmp_path: Path) -> None:
    of_other_domains = {"identity": "spiffe://other.org/a"}  # see test_federation.py
    for name, items in (("workloads", [*WORKLOADS, of_other_domains]), ("services", SERVICES)):
        known = {field.encode_name for field in msgspec.structs.fields(READERS[name].entry)}
        assert known == {key for item in items for key in item}


@pytest.mark.parametrize(
    "text",
    [
        '{"trust_domain": "example.org"}',
        "\ufeff" + json.dumps(STATE),
        json.dumps(STATE).replace("/run/netns", "\\/run\\/netns"),
        json.dumps(STATE).replace("/run/netns", "\\u002frun/netns"),
        json.dumps(STATE).replace("/run/netns/shipper", "/run/netns/\\u005c"),
        json.dumps(STATE).replace(", ", "\t,\r\n\t").replace(": ", " : "),
    ],
)
def test_whatever_json_allows_is_read(tmp_path: Path, text: str) -> None:
    assert load_state(tmp_path, m_json=text).trust_domain == "example.org"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "m.json:1: expected JSON, found the end of the file at column 1"),
        ("# a comment\n{}", "m.json:1: expected JSON, found invalid character at column 1"),
        ('{"workloads": [\n {"name": "a",}]}', "m.json:2: expected JSON, found trailing comma in object at column 15"),
        ('{"trust_domain": example.org}', "m.json:1: expected JSON, found invalid character at column 18"),
        ("{'trust_domain': 'a'}", "m.json:1: expected JSON, found object keys must be strings at column 2"),
        ('{"trust_domain": "example.org"\n', "m.json:1: expected JSON, found the end of the file at column 31"),
        ('{"trust_domain": "a"}\n{}', "m.json:2: expected JSON, found trailing characters at column 2"),
        ("[]", "m.json:1: expected a mapping, found a list"),
        ('{"trust_domain": "EXAMPLE"}', "m.json: trust_domain: expected 1 to 255 characters of a-z, 0-9, '.', '_' "
         "and '-', found 'EXAMPLE'"),
        ('{"trust_domain":\n5}', "m.json:2: trust_domain: expected a text, found the number 5 (put it in quotes)"),
        ('{"workloads": {}}', "m.json:1: workloads: expected a list of workloads, found a mapping"),
        ('{"workload": []}', "m.json:1: workload: expected 'workloads', found the unknown field 'workload'"),
        ('{"workloads": [],\n "workloads": []}', "m.json:2: workloads: expected each field once, found it again "
         "(first at line 1)"),
        ('{"workloads": [\n{"name": "a", "node": "n", "address": "10.0.0.1",\n"node": "m"}]}', "m.json:3: "
         "workloads[0].node: expected each field once, found it again (first at line 2)"),
        ('{"workloads": [\n\n{"name": "a", "node": "n", "address": "10.0.0.999"}]}', "m.json:3: workloads[0].address: "
         "expected an IPv4 or IPv6 address, found '10.0.0.999'"),
        ('{"workloads": [{"name": "a", "node": "n", "address": "127.0.0.1"}]}', "m.json:1: workloads[0].address: "
         "expected an IPv4 address of an interface, found '127.0.0.1'"),
        ('{"workloads": [{"name": "a", "node": "n", "adress": "10.0.0.1"}]}', "m.json:1: workloads[0].adress: expected "
         "'address', found the unknown field 'adress'"),
        ('{"workloads": [{"name": "a b", "node": "n", "address": "10.0.0.1"}]}', "m.json:1: workloads[0].name: "
         "expected 1 to 253 characters of a-z, A-Z, 0-9, '.', '_' and '-', a letter or digit first and last, found "
         "'a b'"),
        ('{"workloads": [{"name": "a", "node": 1e3, "address": "10.0.0.1"}]}', "m.json: workloads[0].node: expected "
         "str, found float"),
        ('{"workloads": [{"name": "a", "node": "n", "address": "10.0.0.1", "limits": {"memory": 5}}]}', "m.json:1: "
         "workloads[0].limits.memory: expected a size from 1MiB such as 256MiB, or none, found the number 5"),
        ('{"services": [{"name": "s", "address": "10.9.0.1", "ports": [{"port": 0}], "endpoints": []}]}', "m.json:1: "
         "services[0].ports[0].port: expected a port from 1 to 65535, found the number 0"),
        (b'{"trust_domain":\n"\xff"}', "m.json:2: expected UTF-8 text, found the byte 0xff"),
        ('{"workloads": ' + "[" * 100_000, "m.json: expected at most 8 levels of lists and mappings, found more"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str | bytes, line: str) -> None:
    assert line in complaints(tmp_path, m_json=text)


def test_everything_that_is_wrong_is_told(tmp_path: Path) -> None:
    text = json.dumps({"workloads": [without(PLAIN, "node"), without(PLAIN, mode="lenient"), PLAIN]}, indent=1)
    assert complaints(tmp_path, m_json=text) == [
        "m.json:3: workloads[0].node: expected a name, found nothing",
        "m.json:21: workloads[1].mode: expected permissive or strict, found 'lenient'",
    ]


def test_what_is_there_twice_is_told_with_both_places(tmp_path: Path) -> None:
    one, two = json.dumps(STATE), json.dumps({"workloads": [without(PLAIN, address="10.0.0.9")]})
    assert complaints(tmp_path, a_json=one, b_json=two) == [
        "b.json: workloads[0].name: expected a name used once, found logs/shipper again (first at a.json, workloads[0])"
    ]
    (tmp_path / "b.json").write_text("{}")
    yaml_text = "services:\n- {name: a, address: 10.0.0.1, ports: [], endpoints: []}\n"
    assert complaints(tmp_path, c_yaml=yaml_text) == [
        "c.yaml:2: services[0].address: expected an address used once, found 10.0.0.1 again "
        "(first at a.json, workloads[0])"
    ]
    (tmp_path / "c.yaml").write_text("trust_domain: example.org\n")
    assert complaints(tmp_path) == [
        "c.yaml:1: trust_domain: expected it in one file only, found it again (first at a.json)"
    ]


def test_an_endpoint_that_is_no_workload_is_told(tmp_path: Path) -> None:
    text = json.dumps({**STATE, "workloads": []})
    assert complaints(tmp_path, m_json=text) == [
        "m.json: services[0].endpoints[0]: expected the name of a workload, found 'logs/shipper', which is none",
        "m.json: services[0].endpoints[1]: expected the name of a workload, found 'default/7', which is none",
    ]


def test_a_list_of_very_many_values_is_not_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_VALUES_MAX", 10)
    with pytest.raises(NotTakenError, match="at most 10 values"):
        read_bulk(json.dumps(STATE).encode())
    assert len(load_state(tmp_path, m_json=json.dumps(STATE)).workloads) == 5


def read(name: str, text: str) -> tuple[object, ...]:
    file = StateFile(Content(Path(name), "m", text.encode()))
    if file.problems:
        # What a bad file says is not used.
        return (True,)
    return (False, file.trust_domain, {kind: placed.items for kind, placed in file.lists.items()})


def has_doubles(text: str) -> bool:
    doubles = []

    def check(pairs: list[tuple[str, object]]) -> None:
        doubles.append(len(dict(pairs)) < len(pairs))

    json.loads(text, object_pairs_hook=check)
    return any(doubles)


PIECES = (
    r"""[ ] { } , : " "" 1 -1 1.5 null true \ \\ \" a 10.0.0.7 é {} [] 0 / . "name":"x", "node":"n", "workloads":[],"""
)
BLANKS = ["\n", " ", "\t"]


def test_both_readers_agree_on_whatever_is_edited_into_a_file() -> None:
    chance = random.Random(4)  # noqa: S311
    taken = 0
    for _ in range(1500):
        text = json.dumps(STATE, indent=chance.choice((None, 0)))
        for _ in range(chance.choice((1, 1, 2))):
            begin = chance.randrange(len(text))
            text = (
                text[:begin]
                + chance.choice([*PIECES.split(), *BLANKS])
                + text[begin + chance.choice((0, 0, 1, 3, 12)) :]
            )
        bad, *content = read("m.json", text)
        try:
            value = json.loads(text)
        except ValueError:
            assert bad, text
            continue
        # JSON as this library writes it is YAML as well, whatever there was between the values.
        as_yaml = read("m.yaml", json.dumps(value))
        assert bad if has_doubles(text) else (bad, *content) == as_yaml, text
        taken += not bad
    assert taken > 50
