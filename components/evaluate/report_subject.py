"""Gathers what the model report shows from files: pictures, training curves, the model's making."""

import io
import json
import posixpath
import time
from collections import Counter
from collections.abc import Sequence

from PIL import Image

from sigline.components.evaluate.predictions import EvalRecord, Predictions
from sigline.components.evaluate.report import Subject
from sigline.components.shared import served_model
from sigline.components.shared.files import BeamFiles
from sigline.components.shared.upright import upright

_SIDE = 224
_MAX_PIXELS = 1 << 26
# Points of a curve that are drawn.
_POINTS = 400
# Where TFX has the SavedModel in an artifact.
_OF_TFX = "Format-Serving"


def subject(
    model_dir: str,
    split: Predictions | None,
    shards: Sequence[str],
    units: set[str],
    *,
    logs_dir: str | None = None,
    baseline_dir: str | None = None,
    reports: str = "",
) -> Subject:
    """Returns what a report says besides metrics.

    Args:
        model_dir: The candidate's SavedModel.
        split: What it is judged by; None if that could not be embedded.
        shards: TFRecord shards of the split.
        units: Records whose pictures are shown.
        logs_dir: Folder of TensorBoard files of the training; None without curves.
        baseline_dir: The last blessed model's SavedModel, if there is one.
        reports: Address of the page that links all reports of a run.
    """
    metadata = served_model.metadata(model_dir)
    lineage = [(name, _as_text(value)) for name, value in sorted(metadata.items())]
    lineage.append(("model", _place(model_dir)))
    if baseline_dir is not None:
        digest = served_model.metadata(baseline_dir).get("model_digest", "no digest")
        lineage.append(("last blessed model", f"{_place(baseline_dir)} ({digest})"))
    return Subject(
        title=f"Model report: {metadata.get('recipe', posixpath.basename(model_dir))}",
        pictures=_pictures(shards, units),
        curves=_curves(logs_dir) if logs_dir else {},
        data=_data(split) if split is not None else (),
        lineage=lineage,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        reports=reports,
    )


def _place(path: str) -> str:
    """Returns where a model lies, without the machine's folders, which are nobody else's business.

    Of an artifact of TFX: the node, the output, the number and the folder.
    """
    parts = path.rstrip("/").split("/")
    return "/".join(parts[-4:] if parts[-1] == _OF_TFX else parts[-1:])


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _data(split: Predictions) -> list[tuple[str, str]]:
    records = split.records
    captions = sum(len(set(record.text)) for record in records)
    languages = Counter(tag for record in records for tag in record.language)
    return [
        ("records", f"{len(records):,}"),
        ("captions", f"{captions:,}"),
        ("with a label", f"{sum(bool(record.label) for record in records):,}"),
        ("sources", _counts(Counter(record.source for record in records))),
        ("languages of captions", _counts(languages)),
    ]


def _counts(counts: Counter) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(10))


def _pictures(shards: Sequence[str], units: set[str]) -> dict[str, bytes]:
    """Returns small pictures of some records, by unit."""
    from sigline.schemas import tf_example

    pictures = {}
    for path in shards:
        for serialized in tf_example.read_shard(path):
            if len(pictures) == len(units):
                return pictures
            record = tf_example.decode(serialized)
            unit = EvalRecord.of(record).unit
            if unit in units:
                pictures[unit] = _small(record.image)
    return pictures


def _small(encoded: bytes) -> bytes:
    """Returns a picture of at most 224 pixels; a grey one for what Pillow does not read."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG"))
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        if max(image.size) <= _SIDE:
            return encoded
        image = upright(image)
        image.thumbnail((_SIDE, _SIDE))
        image = image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        image = Image.new("RGB", (_SIDE // 2, _SIDE // 2), "grey")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _curves(logs_dir: str) -> dict[str, list[tuple[float, float]]]:
    """Returns the scalars of TensorBoard files, by name, thinned out."""
    import tensorflow as tf

    curves: dict[str, dict[int, float]] = {}
    for path in BeamFiles().find(logs_dir):
        if "tfevents" not in posixpath.basename(path):
            continue
        try:
            for event in tf.compat.v1.train.summary_iterator(path):
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars":
                        # A resumed run logs some steps again; the later value counts.
                        number = float(tf.make_ndarray(value.tensor))
                        curves.setdefault(value.tag, {})[event.step] = number
        except tf.errors.DataLossError:
            # The last event of a run that was killed.
            continue
    return {name: _thinned(sorted(points.items())) for name, points in curves.items()}


def _thinned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    every = -(-len(points) // _POINTS)
    return [(float(x), y) for x, y in points[::every]]
