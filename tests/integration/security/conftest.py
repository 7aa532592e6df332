"""A CA of the tests, and what it has signed."""

from __future__ import annotations

import pytest

from .certificates import Authority, Pair


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ca")


@pytest.fixture(scope="session")
def server_pair(authority: Authority) -> Pair:
    return authority.sign("server")


@pytest.fixture(scope="session")
def client_pair(authority: Authority) -> Pair:
    return authority.sign("client")
