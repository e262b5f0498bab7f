"""The model card: what a model is, what it was made of, and what it is worth.

It holds digests and no places, times or durations: the same model, data and verdict give the same
card, wherever and whenever they were made.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigline.schemas import artifacts, digests, record, signatures, strength

# Metrics left out of the card, since they differ between measurements of the same model.
_MEASURED = ("latency_ms",)
_MODEL = (
    "model_digest",
    "recipe",
    "num_parameters",
    "image_size",
    "text_length",
    "embedding_dim",
    "temperature",
    "bias",
    "vocabulary_digest",
    "pair_loss",
    "classes",
    "class_loss",
)
_ORIGIN = ("sigline_version", "code_digest", "config_digest", "data_digest")
_OF_METRIC = ("value", "low", "high", "chance", "baseline")
# The metrics that the card's page shows.
_SHOWN = (
    "classification_accuracy",
    "classification_mean_class_recall",
    "zero_shot_accuracy",
    "image_to_text_recall@1",
    "image_to_text_recall@10",
    "text_to_image_recall@1",
    "text_to_image_recall@10",
)


def card(
    model_dir: str | Path,
    evaluation_dir: str | Path,
    spans: Sequence[tuple[int, int, str | Path]],
    *,
    config: Mapping[str, Any],
    input_digest: str,
    parents: Mapping[str, str],
    baseline_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Returns a card as JSON can hold it.

    Args:
        model_dir: The SavedModel.
        evaluation_dir: What the evaluation has written.
        spans: Span, version and folder of each set of examples that was trained on.
        config: The configuration that it was trained with.
        input_digest: Digest of the bytes of the data that was read last.
        parents: Digests of weights and teachers, by what they were to the model.
        baseline_dir: The SavedModel that it was judged against; None if there was none.
    """
    metadata = _metadata(model_dir)
    verdict = _json(Path(evaluation_dir) / artifacts.VERDICT_FILE)
    metrics = _json(Path(evaluation_dir) / artifacts.METRICS_FILE)
    against = _metadata(baseline_dir)["model_digest"] if baseline_dir else None
    return {
        "model": {name: metadata[name] for name in _MODEL if name in metadata},
        "training": {name: metadata[name] for name in _ORIGIN if name in metadata}
        | {"config": config},
        "data": {
            "input_digest": input_digest,
            "spans": [_span(*item) for item in sorted(spans, key=lambda item: item[:2])],
        },
        "parents": dict(sorted(parents.items())),
        "evaluation": {
            "blessed": verdict["blessed"],
            "judged_against": against,
            "checks": [x for x in verdict["checks"] if not x["metric"].startswith(_MEASURED)],
            "metrics": {
                name: {key: item[key] for key in _OF_METRIC if key in item}
                for name, item in metrics.items()
                if not name.startswith(_MEASURED)
            },
        },
    }


def markdown(content: Mapping[str, Any]) -> str:
    """Returns a card as a page."""
    model, training, evaluation = content["model"], content["training"], content["evaluation"]
    lines = [
        f"# {model.get('recipe', 'model')}",
        "",
        _about(model),
        "",
        "## What it was made of",
        "",
        "| | |",
        "|---|---|",
        f"| model | `{model.get('model_digest', 'unknown')}` |",
        f"| config | `{training.get('config_digest', 'unknown')}` |",
        f"| code | sigline {training.get('sigline_version', 'unknown')}, "
        f"`{training.get('code_digest', 'unknown')}` |",
        f"| data | bytes `{content['data']['input_digest']}` |",
    ]
    for item in content["data"]["spans"]:
        records = ", ".join(f"{count} {name}" for name, count in item["records"].items())
        lines.append(
            f"| trained on | span {item['span']}, version {item['version']}: {records}; "
            f"`{item['digest']}` |"
        )
    lines += [f"| {role} | `{digest}` |" for role, digest in content["parents"].items()]
    lines += [
        f"| judged against | {_code(evaluation['judged_against'] or 'no model before it')} |",
        "",
        "## What it is worth",
        "",
        f"{'Blessed' if evaluation['blessed'] else 'Not blessed'} by "
        f"{sum(check['passed'] for check in evaluation['checks'])} of "
        f"{len(evaluation['checks'])} checks.",
        *_worth(evaluation),
        "",
        "| metric | value | interval | guessing |",
        "|---|---|---|---|",
    ]
    for name in _SHOWN:
        item = evaluation["metrics"].get(name)
        if item is not None:
            value, low, high, chance = (
                _written(name, item.get(key)) for key in ("value", "low", "high", "chance")
            )
            interval = f"{low} to {high}" if low and high else ""
            lines.append(f"| {name} | {value} | {interval} | {chance} |")
    lines += ["", "| check | rule | limit | value | |", "|---|---|---|---|---|"]
    for check in evaluation["checks"]:
        lines.append(
            f"| {check['metric']} | {check['rule']} | "
            f"{_written(check['metric'], check['limit'])} | "
            f"{_written(check['metric'], check['value'])} | "
            f"{'passed' if check['passed'] else 'failed'} |"
        )
    return "\n".join(lines) + "\n"


def _about(model: Mapping[str, Any]) -> str:
    """Returns a sentence that says what a model does."""
    read = f"images of {model.get('image_size', '?')} pixels"
    kind = "image model"
    if "text_length" in model:
        kind, read = "image-text model", f"{read} and texts of {model['text_length']} tokens"
    sentence = (
        f"An {kind} of {model.get('num_parameters', 0):,} parameters: {read} become embeddings of "
        f"{model.get('embedding_dim', '?')} numbers"
    )
    if "classes" in model:
        sentence += f", and its head tells {model['classes']:,} classes apart"
    return f"{sentence}."


def _worth(evaluation: Mapping[str, Any]) -> list[str]:
    """Returns what the verdict means; nothing for a model that is not blessed."""
    words = strength.sentence(evaluation["metrics"]) if evaluation["blessed"] else ""
    return ["", f"{words[0].upper()}{words[1:]}."] if words else []


def _span(span: int, version: int, folder: str | Path) -> dict[str, Any]:
    manifest = Path(folder) / record.MANIFEST_FILE
    splits = _json(manifest)["splits"]
    return {
        "span": span,
        "version": version,
        "digest": digests.file_digest(manifest),
        "records": {
            name: sum(shard["records"] for shard in split["shards"].values())
            for name, split in sorted(splits.items())
        },
        "sources": {name: split.get("sources", {}) for name, split in sorted(splits.items())},
    }


def _metadata(model_dir: str | Path) -> dict[str, Any]:
    return _json(Path(model_dir) / signatures.ASSETS_DIR / signatures.METADATA_FILE)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _written(name: str, value: Any) -> str:
    """Returns a value of a metric; empty if it is not known."""
    return strength.written(name, value) if isinstance(value, int | float) else ""


def _code(text: str) -> str:
    return f"`{text}`"
