"""The metrics that are means over examples, as TFMA results: for its viewers and its slices."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from sigline import quiet
from sigline.components.evaluate import slices
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.texts import distinct_texts
from sigline.components.evaluate.views import View

# Folder of the results over captions, inside that of the results over records.
CAPTIONS_FOLDER = "captions"
_CLASS = "class"
_WEIGHT = "has_"
_FEATURES = "features"


def write(
    view: View, measures: Mapping[str, Measure], class_names: Sequence[str], output_dir: str
) -> None:
    """Writes what `tfma.load_eval_result` reads: means over records, and below it over captions.

    Args:
        view: The split as the candidate sees it.
        measures: The candidate's measures; those that are means over records or captions count.
        class_names: Names of the classes, to slice by; empty without classes.
        output_dir: Folder of the results over records; `captions` below it has the others.
    """
    records = [slices.of_record(record) for record in view.split.records]
    for row, record in zip(records, view.split.records, strict=True):
        if class_names:
            known = [class_names[i] for i in record.label[:1]]
            row[_CLASS] = known[0] if known else "none"
    _write(view.split.units, records, measures, output_dir)
    if not view.reads:
        return
    texts = distinct_texts(view.split.captioned())
    captions = [
        {name: values[i] for name, values in texts.slices.items()} for i in range(len(texts.text))
    ]
    _write(texts.text, captions, measures, posixpath.join(output_dir, CAPTIONS_FOLDER))


def _path(name: str) -> Any:
    # TFMA annotates a combiner's output with one key only.
    return [_FEATURES, name]


def _write(
    units: Sequence[str],
    rows: Sequence[Mapping[str, slices.Value]],
    measures: Mapping[str, Measure],
    output_dir: str,
) -> None:
    # Without tfx before it, TFMA lacks its protocol buffers.
    quiet.import_tfx()
    import tensorflow_model_analysis as tfma

    place = {unit: i for i, unit in enumerate(units)}
    chosen = {
        name: measure
        for name, measure in measures.items()
        if "/" not in name and measure.values is not None and set(measure.units) <= set(place)
    }
    # Dimensions without any values are left out, such as caption lengths if there are no captions.
    dimensions = sorted({n for row in rows for n in row if slices.members(row[n])})
    columns: dict[str, list] = {
        name: [list(slices.members(row[name])) for row in rows] for name in dimensions
    }
    for name, measure in chosen.items():
        values, weights = [[0.0] for _ in units], [[0.0] for _ in units]
        assert measure.values is not None
        for unit, value in zip(measure.units, measure.values, strict=True):
            values[place[unit]], weights[place[unit]] = [float(value)], [1.0]
        columns |= {name: values, _WEIGHT + name: weights}
    config = tfma.EvalConfig(
        model_specs=[tfma.ModelSpec(label_key=dimensions[0], prediction_key=dimensions[0])],
        slicing_specs=[
            tfma.SlicingSpec(),
            *(tfma.SlicingSpec(feature_keys=[name]) for name in dimensions),
        ],
    )
    means = [
        tfma.metrics.Mean(_path(name), _path(_WEIGHT + name), name=name) for name in sorted(chosen)
    ]
    specs = tfma.metrics.specs_from_metrics([tfma.metrics.ExampleCount(), *means])
    config.metrics_specs.extend(specs)
    batch = pa.RecordBatch.from_pydict(columns)
    with beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        _ = (
            pipeline
            | "Examples" >> beam.Create([batch])
            | "Means"
            >> tfma.ExtractEvaluateAndWriteResults(
                eval_config=config,
                writers=tfma.default_writers(output_dir, eval_config=config),
                output_path=output_dir,
            )
        )
