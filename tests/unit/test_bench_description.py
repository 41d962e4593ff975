"""The description files of external peers, and the choice of peers on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from bench.errors import DescriptionError
from bench.peers.external import External, read_description

MINIMAL: dict[str, Any] = {
    "name": "other",
    "captures": False,
    "client": {"command": ["proxy", "--listen", "127.0.0.1:{entry_port}"]},
    "server": {"command": ["proxy", "--listen", "{server}:{tunnel_port}"]},
}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "other.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_minimal_description_has_defaults(tmp_path: Path) -> None:
    description = read_description(write(tmp_path, MINIMAL))
    assert description.name == "other"
    assert description.client.command == ("proxy", "--listen", "127.0.0.1:{entry_port}")
    assert (description.encrypts, description.threads, description.descriptors_per_connection) == (True, 2, 2)
    assert description.server.setup == ()


def test_full_description_is_read(tmp_path: Path) -> None:
    side = {
        "command": ["/opt/proxy"],
        "setup": [["iptables", "-t", "nat"]],
        "files": {"proxy.conf": "listen {server}"},
        "environment": {"THREADS": "{threads}"},
    }
    content = MINIMAL | {"captures": True, "encrypts": False, "threads": 4, "version": ["proxy", "-v"], "client": side}
    description = read_description(write(tmp_path, content))
    assert description.client.setup == (("iptables", "-t", "nat"),)
    assert description.client.files == {"proxy.conf": "listen {server}"}
    assert description.client.environment == {"THREADS": "{threads}"}
    assert (description.captures, description.encrypts, description.threads) == (True, False, 4)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"captures": "maybe"}, "captures: expected true or false, found 'maybe'"),
        ({"threads": 0}, "threads: expected a number, found 0"),
        ({"threads": True}, "threads: expected a number, found True"),
        ({"colour": "blue"}, "found 'colour'"),
        ({"client": {"command": []}}, "client.command: expected a program"),
        ({"client": {"command": "proxy -x"}}, "client.command: expected a list of texts"),
        ({"client": {}}, "client: expected the field 'command'"),
        ({"client": {"command": ["p"], "setup": [["ip", ["x"]]]}}, r"client.setup\[0\]\[1\]: expected a text"),
        ({"server": {"command": ["p", "{port}"]}}, r"server.command\[1\]: expected a text with no other places"),
        ({"server": {"command": ["p"], "files": {"a": "{"}}}, "server.files.a: expected a text with no other places"),
    ],
)
def test_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DescriptionError, match=complaint):
        read_description(write(tmp_path, MINIMAL | change))


@pytest.mark.parametrize("text", ["", "- a list", "name: [", "name: x"])
def test_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DescriptionError, match=str(path)):
        read_description(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"nowhere\.yaml"):
        read_description(tmp_path / "nowhere.yaml")


def test_name_of_another_peer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="another peer"):
        read_description(write(tmp_path, MINIMAL), taken=["other"])


def test_missing_program_is_told_before_a_run(tmp_path: Path) -> None:
    content = MINIMAL | {"client": {"command": ["/nowhere/proxy"]}}
    assert "/nowhere/proxy" in (External(read_description(write(tmp_path, content))).missing() or "")
