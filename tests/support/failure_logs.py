"""What the agents and cores of labs wrote, beside a failure: a conftest that imports the hook has it."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from support.lab import live_labs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the agents and cores of the labs that are up wrote last: with the lab it is gone."""
    report = yield
    if report.failed:
        report.sections += [(name, text) for lab in live_labs for name, text in lab.logs()]
    return report
