"""The files of revocation lists, as an agent follows them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nodeseal.authority.crl import RevocationList
from nodeseal.authority.errors import AuthorityError
from nodeseal.node import revocations as revocations_module
from nodeseal.node.revocations import Revocations


def test_list_that_could_not_be_read_is_read_again_though_its_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "partner.crl"
    path.write_text("there")
    said: list[object] = [AuthorityError("too many open files")] * 2 + [RevocationList(b"x" * 16, None)]

    def read(_path: Path) -> RevocationList:
        one = said.pop(0)
        if isinstance(one, RevocationList):
            return one
        raise AuthorityError(str(one))

    monkeypatch.setattr(revocations_module, "read_crl", read)
    monkeypatch.setattr(revocations_module, "AGAIN_S", 0.0)
    nobody: Any = None

    async def story() -> None:
        found = Revocations("node1", [path], nobody, nobody, lambda: datetime.now(UTC))
        assert [await found.look() for _ in range(4)] == [False, False, True, False]
        assert list(found._unread) == []

    asyncio.run(story())
    assert said == []
    assert sum("too many open files" in record.message for record in caplog.records) == 1
