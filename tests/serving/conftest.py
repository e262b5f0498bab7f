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


@pytest.fixture(scope="session")
def index(tmp_path_factory, contract_base, examples):
    """An index of the scenes, made by the tiny model of the contract."""
    import apache_beam as beam

    from sigline.components.index import build, transforms
    from sigline.components.index.options import IndexConfig

    folder, model = tmp_path_factory.mktemp("index"), str(contract_base / "3")
    with beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        _ = pipeline | transforms.EmbedCorpus(
            str(examples), model, str(folder / "corpus"), splits=("train",)
        )
    config = IndexConfig(top=12, splits=("train",))
    build.build([str(folder / "corpus")], model, folder / "index", config)
    return folder / "index"
