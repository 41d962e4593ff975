"""Commands of a page of the documentation, run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from support.process import nodeseal_command, nodeseal_environment

_EMPTY_RUN = "mount -t tmpfs none /run && echo ready && exec sleep infinity"


def commands_of(page: Path, heading: str) -> list[str]:
    """The lines of the blocks below a heading, in their order, without the remarks behind them."""
    section = page.read_text().partition(f"\n{heading}\n")[2]
    section = re.split(r"^##+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [re.sub(r" +# .*$", "", line) for block in blocks for line in block.splitlines()]


class Machine:
    """A machine on which nothing of nodeseal has been yet: a mount namespace whose /run is empty. So labs in it have
    the names that the pages give them, whatever other tests run. Gone with the `with` block, with the labs in it.

    `nodeseal` is what tests run as it, so the labs' agents have the tests' settings."""

    def __init__(self, directory: Path) -> None:
        """`directory`: for the commands' own files; they begin there."""
        self._directory = directory
        programs = directory / "bin"
        programs.mkdir()
        (programs / "nodeseal").write_text(f'#!/bin/sh\nexec {shlex.join(nodeseal_command())} "$@"\n')
        (programs / "nodeseal").chmod(0o755)
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = nodeseal_environment() | {"PATH": path}

    def __enter__(self) -> Machine:
        argv = ["unshare", "--mount", "sh", "-c", _EMPTY_RUN]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            down = self("nodeseal lab down")
        finally:
            self._holder.kill()
            self._holder.communicate()
        assert down.returncode == 0, down.stderr

    def __call__(self, line: str) -> subprocess.CompletedProcess[str]:
        """One command, to its end."""
        return subprocess.run(
            self._argv(line), capture_output=True, text=True, timeout=90, check=False, env=self._environment
        )

    def does(self, line: str) -> str:
        """One command that has to work, and to complain of nothing; what it prints."""
        done = self(line)
        assert (done.returncode, done.stderr) == (0, ""), f"{line}: {done.stderr}{done.stdout}"
        return done.stdout

    def begins(self, line: str) -> subprocess.Popen[str]:
        """One command that goes on until it is terminated."""
        return subprocess.Popen(
            self._argv(f"exec {line}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )

    def _argv(self, line: str) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", f"--wdns={self._directory}", "sh", "-c", line]
