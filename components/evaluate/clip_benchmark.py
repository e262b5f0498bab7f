"""Results in the shape and by the names of CLIP_benchmark, to be merged with others'."""

import json
from collections.abc import Mapping

from sigline.components.evaluate.results import Result

_METRICS = {
    "zeroshot_classification": {
        "zero_shot_accuracy": "acc1",
        "zero_shot_accuracy@5": "acc5",
        "zero_shot_mean_class_recall": "mean_per_class_recall",
        "zero_shot_mean_average_precision": "mean_average_precision",
    },
    "zeroshot_retrieval": {
        **{f"text_to_image_recall@{k}": f"image_retrieval_recall@{k}" for k in (1, 5, 10)},
        **{f"image_to_text_recall@{k}": f"text_retrieval_recall@{k}" for k in (1, 5, 10)},
    },
}


def files(
    results: Mapping[str, Result], *, dataset: str, model: str, pretrained: str, language: str
) -> dict[str, str]:
    """Returns a JSON file for each task that was measured, by CLIP_benchmark's name for it.

    Its retrieval takes captions that read the same for different ones, and sigline for one: where
    there are such captions, its recalls are lower.

    Args:
        results: What the model reached.
        dataset: Name of the data.
        model: Name of the model's architecture.
        pretrained: Name of its weights.
        language: Language of prompts and captions.
    """
    by_file = {}
    for task, names in _METRICS.items():
        metrics = {names[name]: results[name].value for name in names if name in results}
        if metrics:
            content = {
                "dataset": dataset,
                "model": model,
                "pretrained": pretrained,
                "task": task,
                "metrics": metrics,
                "language": language,
            }
            parts = (dataset, pretrained, model, language, task)
            file = "_".join(part.replace("/", "_") for part in parts)
            by_file[f"{file}.json"] = json.dumps(content, indent=1) + "\n"
    return by_file
