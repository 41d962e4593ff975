"""Which iptables is run, and what is said when it cannot be; with programs made for the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeseal.linux import xtables
from nodeseal.linux.errors import LinuxError

RULE = "*nat\n:DOCKER - [0:0]\n-A DOCKER -j RETURN\nCOMMIT"


class Machine:
    """The iptables of a machine: the only directory in which programs are looked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def has(self, program: str, *, version: str = "", rules: str = "", fails: str = "") -> None:
        """`program`-save prints `rules`, `program`-restore keeps what it is given; `fails`: its complaint."""
        end = f"echo '{fails}' >&2; exit 2" if fails else "exit 0"
        for name, work in (("save", f"echo '{rules}'"), ("restore", f'cat > "{self._directory}/given"')):
            path = self._directory / f"{program}-{name}"
            path.write_text(
                f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{program} v1.8.9{version}"; exit 0; fi\n'
                f"{work}\n{end}\n"
            )
            path.chmod(0o755)

    def given(self) -> str:
        """What -restore read last."""
        return (self._directory / "given").read_text()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(xtables, "_find", lambda command: str(path) if (path := tmp_path / command).exists() else None)
    return Machine(tmp_path)


def both_flavours(machine: Machine, default: str, **rules: str) -> None:
    machine.has("iptables", version=f" ({default})")
    for flavour in ("nft", "legacy"):
        machine.has(f"iptables-{flavour}", rules=rules.get(flavour, ""))


@pytest.mark.parametrize(("default", "chosen"), [("nf_tables", "iptables-nft"), ("legacy", "iptables-legacy")])
def test_default_is_called_by_the_name_of_its_flavour(machine: Machine, default: str, chosen: str) -> None:
    both_flavours(machine, default)
    assert xtables.choose(4) == chosen


@pytest.mark.parametrize(("flavour", "default"), [("nft", "legacy"), ("legacy", "nf_tables")])
def test_flavour_that_holds_rules_is_used(machine: Machine, flavour: str, default: str) -> None:
    both_flavours(machine, default, **{flavour: RULE})
    assert xtables.choose(4) == f"iptables-{flavour}"


def test_default_is_used_when_both_hold_rules(machine: Machine) -> None:
    both_flavours(machine, "legacy", nft=RULE, legacy=RULE)
    assert xtables.choose(4) == "iptables-legacy"


def test_old_iptables_without_flavours(machine: Machine) -> None:
    machine.has("iptables")
    assert xtables.choose(4) == "iptables"


def test_families_have_programs_of_their_own(machine: Machine) -> None:
    machine.has("ip6tables")
    assert xtables.choose(6) == "ip6tables"


def test_nothing_installed(machine: Machine) -> None:
    with pytest.raises(
        LinuxError,
        match=r"^iptables-restore is not installed: apt-get install iptables, or set `capture: ebpf` in the agent's",
    ):
        xtables.choose(4)


def test_text_goes_to_standard_input(machine: Machine) -> None:
    machine.has("iptables-nft")
    xtables.restore("iptables-nft", "*mangle\nCOMMIT\n")
    assert machine.given() == "*mangle\nCOMMIT\n"


def test_complaint_is_one_line(machine: Machine) -> None:
    machine.has(
        "iptables-nft",
        fails="# Warning: iptables-legacy tables present\niptables-nft-restore v1.8.9 (nf_tables): \n"
        "line 4: RULE_APPEND failed (No such file or directory): rule in chain OUTPUT\nTry --help",
    )
    with pytest.raises(LinuxError) as error:
        xtables.restore("iptables-nft", "")
    assert str(error.value) == (
        "iptables-nft-restore: line 4: RULE_APPEND failed (No such file or directory): rule in chain OUTPUT"
    )
