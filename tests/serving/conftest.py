"""Servers of small models: one that tells its version, and one of the model contract."""

from pathlib import Path

import pytest
import small_servers


@pytest.fixture
def versions_base(tmp_path) -> Path:
    """A folder with version 1."""
    base = tmp_path / "versions"
    small_servers.write_version(base, 1)
    return base


@pytest.fixture(scope="module")
def server(contract_base):
    """A server of it."""
    with small_servers.running(contract_base) as found:
        yield found
