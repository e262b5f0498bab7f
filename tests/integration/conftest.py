"""One whole run of the pipeline, which several files of tests look at."""

import dataclasses
import json
from pathlib import Path

import pytest
from whole_run import WholeRun, write_environment

from sigline.components.scenes import generate
from sigline.schemas import signatures


@pytest.fixture(scope="session")
def whole_run(make_once, tmp_path_factory) -> WholeRun:
    """The first run of a pipeline that publishes a model and an index."""

    def _make(facts: Path) -> None:
        from google.protobuf import json_format

        from sigline.pipeline import environment as environments
        from sigline.pipeline import local_run

        # Not in the folder of facts, which is moved when it is whole: a run knows its own paths.
        folder = tmp_path_factory.mktemp("whole-run")
        faults = {generate.CORRUPT: 0.02, generate.EMPTY_TEXT: 0.01}
        generate.write_scenes(folder / "data", count=1000, seed=1, faults=faults)
        report = local_run.run(environments.load(write_environment(folder)))
        assert report is not None
        assets = folder / "root/serving/1" / signatures.ASSETS_DIR
        (facts / "folder").write_text(str(folder))
        written = json.dumps(dataclasses.asdict(report), default=json_format.MessageToDict)
        (facts / "report.json").write_text(written)
        (facts / "model.json").write_bytes((assets / signatures.METADATA_FILE).read_bytes())

    return WholeRun.read(make_once("whole-run", _make))
