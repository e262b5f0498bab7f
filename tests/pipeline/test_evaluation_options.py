"""What an environment says of evaluation."""

import dataclasses

import pytest

from sigline.components.evaluate.corruptions import Corruption
from sigline.components.evaluate.options import Options
from sigline.pipeline import checks, environment
from sigline.schemas.labels import LabelSet

GERMAN = LabelSet(("Hund", "Katze"), ("ein Bild von {}", "{}"))


def _environment(tmp_path, **evaluation):
    return environment.Environment(
        pipeline_name="p",
        root=str(tmp_path),
        input_base=str(tmp_path / "data"),
        recipe="siglip_demo",
        evaluation=evaluation,
    )


def test_files_are_read_before_anything_runs(tmp_path):
    (tmp_path / "de.json").write_text(GERMAN.to_json())
    given = _environment(
        tmp_path, labels={"de": str(tmp_path / "de.json")}, probes=True, corrupt=["blur@3"]
    )
    found = checks.evaluation(given)
    assert found == Options({"de": GERMAN}, True, (Corruption("blur", 3),))
    assert Options.from_json(found.to_json()) == found
    nothing = checks.evaluation(dataclasses.replace(given, evaluation={}))
    assert nothing == Options()
    assert Options.from_json(nothing.to_json()) == nothing


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"probe": True}, "Unknown key evaluation.probe. Known keys: evaluation.labels"),
        ({"probes": "yes"}, "evaluation.probes must be true or false"),
        ({"labels": {"de": "nothing.json"}}, "labels must be label sets. de: "),
        ({"corrupt": ["blur"]}, "evaluation.corrupt reads KIND@SEVERITY"),
        ({"corrupt": ["blur@9"]}, "severity 1 to 5"),
    ],
)
def test_mistake_is_refused(tmp_path, evaluation, message):
    with pytest.raises(ValueError, match=message):
        checks.evaluation(_environment(tmp_path, **evaluation))
