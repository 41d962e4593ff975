"""Where the API server is, for a process in a pod."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeseal.kubernetes.access import Access, AccessError

HERE = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "ca.crt").write_text("a certificate")
    (tmp_path / "token").write_text("first\n")
    return tmp_path


def test_pod_finds_its_server(account: Path) -> None:
    access = Access.in_cluster(HERE, account)
    assert access.server == "https://10.96.0.1:443"
    assert Access.in_cluster({**HERE, "KUBERNETES_SERVICE_HOST": "fd00::1"}, account).server == "https://[fd00::1]:443"


def test_token_is_read_each_time(account: Path) -> None:
    access = Access.in_cluster(HERE, account)
    assert access.bearer() == "first"
    (account / "token").write_text("second")
    assert access.bearer() == "second"


def test_process_that_is_in_no_pod_is_told(account: Path) -> None:
    with pytest.raises(
        AccessError, match="this is no pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not"
    ):
        Access.in_cluster({}, account)


@pytest.mark.parametrize("missing", ["ca.crt", "token"])
def test_pod_without_an_account_is_told(account: Path, missing: str) -> None:
    (account / missing).unlink()
    with pytest.raises(AccessError, match=missing):
        Access.in_cluster(HERE, account)


@pytest.mark.parametrize("token", ["", "\n", "first\r\nX: second", "\x00", "\xe9"])
def test_token_that_is_none_is_not_sent(account: Path, token: str) -> None:
    (account / "token").write_text(token)
    with pytest.raises(AccessError, match="the token"):
        Access.in_cluster(HERE, account)
