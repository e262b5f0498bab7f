import json

from sigline.components.evaluate import clip_benchmark
from sigline.components.evaluate.results import Result

RESULTS = {
    "zero_shot_accuracy": Result(0.5),
    "zero_shot_accuracy@5": Result(0.75),
    "text_to_image_recall@1": Result(0.25),
    "image_to_text_recall@1": Result(0.125),
    "zero_shot_accuracy/source=a": Result(0.0),
}
NAMES = {"dataset": "wds/scenes", "model": "siglip_demo", "pretrained": "7", "language": "en"}


def test_results_have_clip_benchmarks_shape_and_names():
    found = clip_benchmark.files(RESULTS, **NAMES)
    assert sorted(found) == [
        "wds_scenes_7_siglip_demo_en_zeroshot_classification.json",
        "wds_scenes_7_siglip_demo_en_zeroshot_retrieval.json",
    ]
    classification, retrieval = (json.loads(found[name]) for name in sorted(found))
    assert classification == {
        "dataset": "wds/scenes",
        "model": "siglip_demo",
        "pretrained": "7",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5, "acc5": 0.75},
        "language": "en",
    }
    # CLIP_benchmark names what is searched: images by texts is image retrieval.
    assert retrieval["metrics"] == {
        "image_retrieval_recall@1": 0.25,
        "text_retrieval_recall@1": 0.125,
    }


def test_task_that_was_not_measured_has_no_file():
    assert clip_benchmark.files({"image_norm": Result(1.0)}, **NAMES) == {}
