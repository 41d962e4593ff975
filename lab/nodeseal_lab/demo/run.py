"""`nodeseal lab demo`: one run of a story, in a lab of its own that is taken down whatever happens."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec

from nodeseal.contracts import output
from nodeseal_lab.demo.enrolment import EnrolmentStory
from nodeseal_lab.demo.identity.story import IdentityStory
from nodeseal_lab.demo.pcap import PcapError
from nodeseal_lab.demo.report import CheckFailed, Report
from nodeseal_lab.demo.story import Story
from nodeseal_lab.errors import LabBusyError, LabError, MissingToolError
from nodeseal_lab.interruption import signals_interrupt
from nodeseal_lab.lab import require_root, take_down

STORIES: dict[str, type[EnrolmentStory] | type[IdentityStory]] = {
    "enrolment": EnrolmentStory,
    "identity": IdentityStory,
}
"""By the words of the command line."""


def run_demo(name: str, *, story: str = "enrolment", as_json: bool = False, ipv6: bool = False) -> int:
    """A whole story in a lab of its own, which it takes down again whatever happens; `ipv6`: over IPv6. Returns the
    exit status.

    Raises LabError when it cannot begin."""
    require_root("nodeseal lab demo")
    if missing := [tool for tool in ("tcpdump", "curl", "ip") if shutil.which(tool) is None]:
        raise MissingToolError([{"ip": "iproute2"}.get(tool, tool) for tool in missing])
    report = Report(quiet=as_json)
    began = time.monotonic()
    failure: Exception | None = None
    told: Story = STORIES[story](name, report, ipv6=ipv6)
    with _only_one(name), signals_interrupt():
        try:
            told.run()
        except (CheckFailed, LabError, PcapError, subprocess.TimeoutExpired) as error:
            failure = error
            report.failed(error)
        finally:
            left = take_down(name)
    report.finish_step()
    for line in left.failures:
        print(f"nodeseal: {line}", file=sys.stderr)
    seconds = time.monotonic() - began
    passed = failure is None and not left.failures
    if as_json:
        why = str(failure) if failure else None
        result = output.Demo(passed=passed, seconds=round(seconds, 1), failure=why, steps=report.rows())
        print(json.dumps(msgspec.to_builtins(result), indent=2))
    elif passed:
        checks = sum(len(step.checks) for step in report.steps)
        report.say()
        report.say(f"All {checks} checks hold, in {seconds:.1f} s. To try it yourself: nodeseal lab up")
    return 0 if passed else 1


@contextlib.contextmanager
def _only_one(name: str) -> Iterator[None]:
    """Holds an abstract Unix socket for as long as the demo runs: nothing on disk, gone with the process. Raises
    LabBusyError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(f"\0nodeseal-demo-{name}")
        except OSError as error:
            raise LabBusyError(name) from error
        yield
