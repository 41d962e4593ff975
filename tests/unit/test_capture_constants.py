"""The same numbers in bpf/nodeseal.h, cext/include/nodeseal_core.h and Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nodeseal.capture import constants, listeners
from nodeseal.splice import native

ROOT = Path(__file__).resolve().parents[2]


def defines(path: Path) -> dict[str, int]:
    """Numbers by name, from #define lines and enum constants."""
    text = path.read_text()
    found = re.findall(r"^#define (NS_\w+) (0x[0-9a-fA-F]+|\d+)\b", text, re.MULTILINE)
    found += re.findall(r"\b(NS_\w+) =\s+(0x[0-9a-fA-F]+|\d+)\b", text)
    return {name: int(value, 0) for name, value in found}


BPF = defines(ROOT / "bpf" / "nodeseal.h")
CORE = defines(ROOT / "cext" / "include" / "nodeseal_core.h")
RING = ROOT / "cext" / "src" / "loop" / "ring.h"


@pytest.mark.parametrize(
    "name",
    [
        "NS_MARK_CAPTURED",
        "NS_MARK_TO_APP",
        "NS_MARK_CORE",
        "NS_MARK_RELEASED",
        "NS_MARK_NATIVE",
        "NS_MARK_ADMITTED",
        "NS_MARK_HOST_RELEASED",
        "NS_HBONE_PORT",
    ],
)
def test_marks_and_port_agree_in_all_three(name: str) -> None:
    assert BPF[name] == CORE[name] == getattr(constants, name.removeprefix("NS_"))


def test_marks_of_processes_agree() -> None:
    assert BPF["NS_MARK_HOST"] == constants.MARK_HOST
    assert BPF["NS_MARK_HOST_MASK"] == constants.MARK_HOST_MASK
    assert BPF["NS_HOST_NUMBERS"] == constants.HOST_NUMBERS[-1] + 1
    assert {constants.host_mark(number) & constants.MARK_HOST_MASK for number in constants.HOST_NUMBERS} == {
        constants.MARK_HOST
    }


def test_ways_to_an_endpoint_agree() -> None:
    names = ("PLAINTEXT", "TUNNEL", "TUNNEL_BY_NAME")
    assert [CORE[f"NS_{name}"] for name in names] == [getattr(native, name) for name in names]


def test_listener_roles_agree_with_the_core() -> None:
    assert (BPF["NS_LISTENER_OUTBOUND"], BPF["NS_LISTENER_INBOUND"]) == (listeners.OUTBOUND, listeners.INBOUND)
    core = [CORE[f"NS_LISTEN_{name}"] for name in ("OUTBOUND", "INBOUND", "HBONE", "HBONE6", "PARKED")]
    assert core == list(native.ROLES)
    assert core == [listeners.OUTBOUND, listeners.INBOUND, listeners.HBONE, listeners.HBONE6, listeners.PARKED]
    assert BPF["NS_LISTENER_COUNT"] == len(listeners.STEERED)


def test_families_agree() -> None:
    assert {4: BPF["NS_FAMILY_IPV4"], 6: BPF["NS_FAMILY_IPV6"]} == constants.FAMILIES
    assert BPF["NS_SETTING_OPEN"] == constants.SETTING_OPEN
    assert BPF["NS_SETTING_PARK"] == constants.SETTING_PARK
    assert BPF["NS_SETTING_PARK_IN"] == constants.SETTING_PARK_IN
    assert BPF["NS_SETTING_NATIVE"] == constants.SETTING_NATIVE
    assert BPF["NS_RING_BYTES"] == constants.RING_BYTES


def test_records_of_the_ring_agree() -> None:
    text = (ROOT / "bpf" / "nodeseal.h").read_text()
    bpf = dict(re.findall(r"^#define (NS_PARKED_\w+)[\s\\]+(\d+)\b", text, re.MULTILINE))
    core = dict(re.findall(r"\b(PARKED_\w+) = +(\d+),", RING.read_text()))
    assert core.pop("PARKED_PACKET_MAX") == re.findall(r"u8 packet\[(\d+)\]", text)[0]
    assert {f"NS_{name}": value for name, value in core.items()} == bpf


def test_fields_of_a_record_are_in_their_places() -> None:
    text = (ROOT / "bpf" / "nodeseal.h").read_text()
    fields = re.search(r"^struct ns_parked \{(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    mirror = re.search(r"^struct parked_record \{(.*?)^\}", RING.read_text(), re.MULTILINE | re.DOTALL)
    assert fields is not None
    assert mirror is not None
    field = re.compile(r"^ +(?:u32|uint32_t|u8|uint8_t|struct \w+) (\w+)", re.MULTILINE)
    assert field.findall(fields[1]) == field.findall(mirror[1]) == ["kind", "length", "value", "mark", "packet", "flow"]


def test_reasons_of_native_connections_agree() -> None:
    ours = {f"NS_{name}": value for name, value in vars(constants).items() if name.startswith("NATIVE_")}
    del ours["NS_NATIVE_MAPS"]
    theirs = {name: value for name, value in BPF.items() if name.startswith("NS_NATIVE_")}
    assert ours == theirs


def test_enrolment_states_agree() -> None:
    assert BPF["NS_STATE_CAPTURE"] == constants.STATE_CAPTURE
    assert BPF["NS_STATE_LEAVE"] == constants.STATE_LEAVE


def test_counters_agree_by_number_and_name() -> None:
    counters = {
        name.removeprefix("NS_COUNT_").lower(): value
        for name, value in BPF.items()
        if name.startswith("NS_COUNT_") and name != "NS_COUNT_COUNT"
    }
    assert counters == {name: number for number, name in enumerate(constants.COUNTERS)}
    assert BPF["NS_COUNT_COUNT"] == len(constants.COUNTERS)
