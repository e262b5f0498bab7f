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


@pytest.fixture(scope="session")
def contract_base(tmp_path_factory, vocabulary) -> Path:
    """A folder with version 3 of a tiny model of the contract."""
    from sigline.components.scenes import grammar
    from sigline.trainer import config, export, two_tower

    tiny = config.tiny(config.load_recipe("siglip_demo"))
    base = tmp_path_factory.mktemp("serving")
    model, labels = two_tower.build(tiny), grammar.label_set()
    export.export(base / "3", model, config=tiny, vocabulary=vocabulary, labels=labels)
    return base


@pytest.fixture(scope="module")
def server(contract_base):
    """A server of it."""
    with small_servers.running(contract_base) as found:
        yield found
