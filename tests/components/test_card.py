"""The model card, of models that were refused too."""

import json

import pytest

from sigline.components.publish import card
from sigline.schemas import artifacts, record, signatures


@pytest.fixture
def folders(tmp_path):
    """What a model, its evaluation and its data have written."""
    model = tmp_path / "model" / signatures.ASSETS_DIR
    model.mkdir(parents=True)
    told = {"model_digest": "abc", "recipe": "mine", "num_parameters": 12345}
    (model / signatures.METADATA_FILE).write_text(json.dumps(told))
    (tmp_path / artifacts.VERDICT_FILE).write_text(
        json.dumps(
            {
                "blessed": False,
                "checks": [
                    {
                        "metric": "model",
                        "rule": "all weights are alike",
                        "limit": None,
                        "value": None,
                        "passed": False,
                        "note": "",
                    },
                    {
                        "metric": "latency_ms/embed_text@1",
                        "rule": "at most",
                        "limit": 1.0,
                        "value": 0.5,
                        "passed": True,
                        "note": "",
                    },
                ],
            }
        )
    )
    metrics = {
        "zero_shot_accuracy": {"value": None, "low": None, "high": None, "chance": 0.25},
        "text_to_image_recall@1": {"value": 0.5, "low": 0.25, "high": 0.75},
        "latency_ms/embed_text@1": {"value": 0.5},
    }
    (tmp_path / artifacts.METRICS_FILE).write_text(json.dumps(metrics))
    data = tmp_path / "data"
    data.mkdir()
    shards = {"a.gz": {"records": 3}, "b.gz": {"records": 4}}
    splits = {"train": {"shards": shards, "sources": {"x": 7}}}
    (data / record.MANIFEST_FILE).write_text(json.dumps({"splits": splits}))
    return tmp_path


def test_card_of_a_refused_model_says_what_could_not_be_told(folders):
    found = card.card(
        folders / "model",
        folders,
        [(8, 0, folders / "data"), (7, 1, folders / "data")],
        config={"steps": 5},
        input_digest="f00",
        parents={"teacher big": "d1"},
    )
    assert [(item["span"], item["records"]) for item in found["data"]["spans"]] == [
        (7, {"train": 7}),
        (8, {"train": 7}),
    ]
    assert set(found["evaluation"]["metrics"]) == {"zero_shot_accuracy", "text_to_image_recall@1"}
    page = card.markdown(found)
    assert "12,345 parameters" in page
    assert "| zero_shot_accuracy |  |  | 25.0% |" in page
    assert "| text_to_image_recall@1 | 50.0% | 25.0% to 75.0% |  |" in page
    assert "| model | all weights are alike |  |  | failed |" in page
    assert "Not blessed by 0 of 1 checks." in page
    assert "| teacher big | `d1` |" in page
    assert str(folders) not in page
