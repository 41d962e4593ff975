"""Runs the core under callgrind, for machines where perf cannot sample.

It is the real core in the bench's real bed, only slower by a factor of 50 and more: the agent starts it with
sys.executable, which a sitecustomize module of ours (through PYTHONPATH) turns into a script that starts a core under
valgrind and everything else as ever. What callgrind counts are instructions in user space; the kernel's part is not
seen. --separate-callers makes it keep a count for each chain of callers, so that its files hold whole stacks.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.stacks import Folded, Frame, tidy

CALLERS = 24
"""Frames that a stack may have; the core's own longest chain is half of it."""

_CONTROL_SECONDS = 60.0
_EXECUTABLE = "NODESEAL_PROFILE_EXECUTABLE"
_SITECUSTOMIZE = f"""import os, sys
sys.executable = os.environ.get("{_EXECUTABLE}", sys.executable)
"""
_SCRIPT = """#!/bin/sh
# -m nodeseal core ...: the splice core.
if [ "$1 $2 $3" = "-m nodeseal core" ]; then
    exec valgrind --tool=callgrind --instr-atstart=no --separate-callers={callers} \\
        --callgrind-out-file={directory}/out.%p --log-file={directory}/log.%p {python} "$@"
fi
exec {python} "$@"
"""
_NAME = re.compile(r"^(c?(?:fn|ob))=\((\d+)\)(?: (.*))?$")
_COST = re.compile(r"^(?:[+-]?\d+|\*) (\d+)$")


def callgrind_missing() -> str | None:
    """Why callgrind cannot be used here, in one line; None when it can."""
    return None if shutil.which("callgrind_control") else "valgrind is missing: apt-get install valgrind"


@dataclass
class Instrumented:
    """Cores under callgrind; `directory`, which must exist, gets callgrind's files."""

    directory: Path

    @contextlib.contextmanager
    def cores(self) -> Iterator[None]:
        """Within the block, agents that are started start their cores under callgrind."""
        (self.directory / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        script = self.directory / "python"
        directory, python = shlex.quote(str(self.directory)), shlex.quote(sys.executable)
        script.write_text(_SCRIPT.format(callers=CALLERS, directory=directory, python=python))
        script.chmod(0o755)
        path = os.pathsep.join(filter(None, (str(self.directory), os.environ.get("PYTHONPATH"))))
        before = {name: os.environ.get(name) for name in ("PYTHONPATH", _EXECUTABLE)}
        os.environ.update({"PYTHONPATH": path, _EXECUTABLE: str(script)})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    @contextlib.contextmanager
    def counting(self, pids: Sequence[int]) -> Iterator[None]:
        """Counts in the block, and writes what was counted. Raises BenchError."""
        _control("--instr=on", pids)
        yield
        _control("--instr=off", pids)
        _control("--dump", pids)

    def fold(self, pids: Sequence[int], side_of: Callable[[int], str]) -> Folded:
        """The stacks of the last block, in instructions; `side_of` as in bench.stacks.fold_script. Raises
        BenchError."""
        folded: Folded = Counter()
        for pid in pids:
            parts = sorted(self.directory.glob(f"out.{pid}.*"), key=lambda path: int(path.suffix[1:]))
            if not parts:
                raise BenchError(f"callgrind wrote nothing for the core {pid}; see {self.directory}/log.{pid}")
            side = (Frame(side_of(pid), ""),)
            for stack, count in fold_callgrind(parts[-1].read_text()).items():
                folded[side + stack] += count
        return folded


def fold_callgrind(text: str) -> Folded:
    """Folds a callgrind.out file with names compressed, one position and one event, and contexts as
    --separate-callers writes them: "function'caller'caller's caller". The format is described in valgrind's manual,
    "Callgrind Format Specification"."""
    names: dict[tuple[str, str], str] = {}
    modules: dict[str, str] = {}
    costs = Counter[str]()
    module = called_module = context = ""
    inclusive = False
    for line in text.splitlines():
        if match := _NAME.match(line):
            key, number, given = match.groups()
            if given is not None:
                names[key[-2:], number] = given
            name = names[key[-2:], number]
            if key == "ob":
                module = called_module = name
            elif key == "cob":
                called_module = name
            else:
                modules.setdefault(name.partition("'")[0], module if key == "fn" else called_module)
                context = name if key == "fn" else context
        elif line.startswith("calls="):
            inclusive = True  # the next line is the cost of the calls, which the called function has too
        elif match := _COST.match(line):
            if not inclusive:
                costs[context] += int(match[1])
            inclusive, called_module = False, module
    modules = {name: "[unknown]" if module == "???" else module for name, module in modules.items()}
    folded: Folded = Counter()
    for chain, count in costs.items():
        frames = tuple(Frame(_symbol(part), modules.get(part, "[unknown]")) for part in reversed(chain.split("'")))
        folded[tidy(frames)] += count
    return folded


def _symbol(name: str) -> str:
    # callgrind names a function without a symbol by its address, and a version behind "@@".
    return "[unknown]" if name.startswith("0x") else name.partition("@@")[0]


def _control(what: str, pids: Sequence[int]) -> None:
    command = ["callgrind_control", what, *map(str, pids)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_CONTROL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(command)} did not end within {_CONTROL_SECONDS:.0f} s") from error
    if done.returncode != 0 or done.stdout.count("OK.") < len(pids):
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise BenchError(f"{' '.join(command)} failed: {said}")
