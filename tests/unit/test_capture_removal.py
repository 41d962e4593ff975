"""Taking things away again."""

from __future__ import annotations

from nodeseal.capture.errors import CaptureError
from nodeseal.capture.removal import carried_out
from nodeseal.linux.errors import LinuxError


def fail(error: Exception) -> bool:
    raise error


def test_every_step_is_taken_and_failures_say_what_stays() -> None:
    results = list(
        carried_out(
            [
                ("a rule", lambda: True),
                ("a table", lambda: fail(LinuxError("cannot empty the routing table 7: Operation not permitted"))),
                ("a map", lambda: fail(PermissionError(1, "Operation not permitted"))),
                ("a chain", lambda: fail(CaptureError("cannot remove the chain: it is in use"))),
                ("a link", lambda: False),
                ("a setting", lambda: True),
            ]
        )
    )
    assert list(map(str, results)) == [
        "a rule",
        "cannot remove a table: cannot empty the routing table 7: Operation not permitted",
        "cannot remove a map: Operation not permitted",
        "cannot remove the chain: it is in use",
        "a setting",
    ]
    assert [isinstance(result, CaptureError) for result in results] == [False, True, True, True, False]
