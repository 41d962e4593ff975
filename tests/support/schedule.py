"""How `pytest -n` deals tests out: a file stays together, for its fixtures' sake, and files go out in pytest's order.

A file of C tests is many programs that have nothing in common; each of them goes out for itself.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import NodeManager

C_TESTS = "tests/unit/test_cext.py"
END_SECONDS = 60
"""For a process to take its labs down, after an interrupt also, before it is killed."""


class FilesTogether(LoadScopeScheduling):
    """A unit of work is a file of tests, or a program of C tests."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        # What takes longest stands first in testpaths; xdist would put first what has the most tests.
        config.option.loadscopereorder = False
        NodeManager.EXIT_TIMEOUT = END_SECONDS
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return unit_of_work(nodeid)


def unit_of_work(nodeid: str) -> str:
    """What runs in one process with the test of this id: "tests/unit/test_cext.py::test_c[test_tls-a_name]" goes with
    the tests of test_tls, any other with those of its file."""
    file, _, test = nodeid.partition("::")
    if file != C_TESTS or "[" not in test:
        return file
    return f"{file}::{test.partition('[')[2].rstrip(']').partition('-')[0]}"
