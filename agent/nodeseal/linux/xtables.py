"""Running iptables-save and iptables-restore, of the flavour that a network namespace uses already.

There are two (iptables 1.8): `nft` writes rules into nftables, `legacy` into the kernel's own tables. Both work side by
side, but a user who lists one does not see the other, so ours go to where rules are already. Functions here are to be
called inside the namespace (NetworkNamespace.run): a child of the thread belongs to it too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from nodeseal.linux.errors import LinuxError

_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_TABLE = "mangle"
_LOCK_PATIENCE_S = 10  # legacy: another iptables holds /run/xtables.lock
_TIMEOUT_S = 60.0
_SYSTEM_PATHS = ("/usr/sbin", "/sbin")  # not in everybody's PATH


def choose(family: int) -> str:
    """The program to use here: iptables-nft, iptables-legacy (ip6tables-...), or iptables where that is all there is.

    `family`: 4 or 6. Raises LinuxError when there is none.
    """
    program = _PROGRAMS[family]
    default = _default(program)
    in_use = [
        name
        for name in (f"{program}-nft", f"{program}-legacy")
        if _find(f"{name}-save") and holds_rules(_run([f"{name}-save"]))
    ]
    return in_use[0] if len(in_use) == 1 else default


def save(program: str, *, counters: bool = False, table: str = _TABLE) -> str:
    """What a table holds; `counters`: with how often each rule matched. Raises LinuxError."""
    return _run([f"{program}-save", *(["-c"] if counters else []), "-t", table])


def restore(program: str, text: str) -> None:
    """Change the table that `text` names as it says, all at once, and nothing else of it. Raises LinuxError."""
    _run([f"{program}-restore", "--noflush", "-w", str(_LOCK_PATIENCE_S)], text)


def holds_rules(saved: str) -> bool:
    """Whether somebody uses these tables: `iptables-save` names a rule, or a chain that is not the kernel's."""
    return bool(re.search(r"^-A |^:\S+ - ", saved, re.MULTILINE))


def _default(program: str) -> str:
    """By its own name, which stays the same should the system's default be another later."""
    version = _run([f"{program}-restore", "--version"])
    match = re.search(r"\((nf_tables|legacy)\)", version)
    named = {"nf_tables": f"{program}-nft", "legacy": f"{program}-legacy"}.get(match[1] if match else "", program)
    return named if _find(f"{named}-restore") and _find(f"{named}-save") else program


def _find(command: str) -> str | None:
    return shutil.which(command, path=os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_PATHS]))


def _run(command: list[str], text: str | None = None) -> str:
    path = _find(command[0])
    if path is None:
        raise LinuxError(
            f"{command[0]} is not installed: apt-get install iptables, or set `capture: ebpf` in the agent's "
            "configuration"
        )
    try:
        done = subprocess.run(
            [path, *command[1:]],
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LinuxError(f"{path} cannot be run: {error}") from None
    if done.returncode != 0:
        raise LinuxError(f"{Path(path).name}: {_reason(done.stderr) or f'ended with status {done.returncode}'}")
    return done.stdout


def _reason(messages: str) -> str:
    """Its first complaint, without the program's name and version before it, which may be in a line of their own."""
    lines = [re.sub(r"^\S+ v[0-9.]+ \([a-z_]+\):\s*", "", line).strip() for line in messages.splitlines()]
    return next((line for line in lines if line and not line.startswith("#")), "")
