"""One API server for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.api_server import ApiServer
from support.namespaces import Namespaces


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with Namespaces() as net, ApiServer(tmp_path_factory.mktemp("kubernetes"), net.create("api")) as server:
        yield server
