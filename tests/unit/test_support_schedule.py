"""What tests run in the same process when they run in parallel."""

from __future__ import annotations

import pytest

from support.schedule import C_TESTS, unit_of_work


@pytest.mark.parametrize(
    ("test", "unit"),
    [
        ("tests/netns/test_check.py::test_a[ipv4-mtls]", "tests/netns/test_check.py"),
        ("tests/unit/test_cli_help.py::TestHelp::test_a", "tests/unit/test_cli_help.py"),
        (f"{C_TESTS}::test_c[test_tls-a_name]", f"{C_TESTS}::test_tls"),
        (f"{C_TESTS}::test_program_lists_every_test_of_its_source[test_tls]", f"{C_TESTS}::test_tls"),
        (f"{C_TESTS}::test_a_name_that_is_no_test_fails", C_TESTS),
    ],
)
def test_file_stays_together_and_so_does_a_c_program(test: str, unit: str) -> None:
    assert unit_of_work(test) == unit
