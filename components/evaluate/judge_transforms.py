"""Judges a model: embeds a split with it and with the baseline, measures, compares, decides."""

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from sigline.components import served_model
from sigline.components.evaluate import (
    costs,
    evaluation,
    findings,
    gate,
    leaks,
    parity,
    report,
    report_transforms,
    results,
    view_transforms,
)
from sigline.components.evaluate.evaluation import View
from sigline.components.evaluate.inputs import BASELINE, CANDIDATE, Inputs
from sigline.components.files import BeamFiles, write_file
from sigline.schemas import artifacts, signatures
from sigline.schemas.gate import Gate
from sigline.schemas.labels import LabelSet

_LATENCY_BATCH = 16


@dataclass(frozen=True)
class Judgement:
    """What came out.

    Attributes:
        results: Every metric with its interval, and the baseline beside it.
        verdict: Whether the gate lets the model pass, and why.
        views: The split as each model sees it, by role.
    """

    results: dict[str, results.Result]
    verdict: gate.Verdict
    views: dict[str, View]


def judge(inputs: Inputs, limits: Gate, output_dir: str, pipeline: beam.Pipeline) -> Judgement:
    """Judges a model and writes `metrics.json`, `verdict.json` and `report.html` below a folder.

    A model whose embeddings are not finite, or that cannot read a picture of the split, is refused
    with the keys; nothing else is then measured.

    Args:
        inputs: The models and the data.
        limits: The gate.
        output_dir: Folder to write to.
        pipeline: A Beam pipeline that has not run yet.

    Raises:
        ValueError: If there is nothing to judge by, or a label has no class.
    """
    scratch = posixpath.join(output_dir, ".embedded")
    embedded, trained = view_transforms.embed(inputs, scratch, pipeline)
    labels = inputs.labels or view_transforms.own_labels(inputs.model_dir)
    # Each once, though corrupted pictures may have it again.
    own = embedded[CANDIDATE].values()
    problems = list(dict.fromkeys(problem for split in own for problem in split.problems()))
    if inputs.parity_file and not problems:
        with BeamFiles().open(inputs.parity_file) as handle:
            problems = parity.problems(
                embedded[CANDIDATE][view_transforms.SPLIT],
                handle.read(),
                tolerance=limits.max_parity_difference,
            )
    views, found = {}, {}
    if not problems:
        views = view_transforms.views(inputs, embedded, labels)
        measured = {role: evaluation.measures(view) for role, view in views.items()}
        found = results.summarize(
            measured[CANDIDATE], measured.get(BASELINE), confidence=limits.confidence
        )
        spent = _costs(inputs)
        found |= results.costs(spent[CANDIDATE], spent.get(BASELINE))
        if trained is not None:
            leaked = leaks.measures(views[CANDIDATE].split.records, trained)
            found |= results.summarize(leaked, None, confidence=limits.confidence)
    verdict = gate.judge(
        found, limits, has_baseline=inputs.baseline_dir is not None, problems=problems
    )
    written = {
        artifacts.METRICS_FILE: json.dumps(results.to_dict(found), indent=1, sort_keys=True),
        artifacts.VERDICT_FILE: json.dumps(verdict.to_dict(), indent=1, sort_keys=True),
        artifacts.REPORT_FILE: _report(
            inputs, limits, verdict, found, views.get(CANDIDATE), labels
        ),
    }
    for name, text in written.items():
        write_file(posixpath.join(output_dir, name), text.encode())
    return Judgement(found, verdict, views)


def _report(
    inputs: Inputs,
    limits: Gate,
    verdict: gate.Verdict,
    found: Mapping[str, results.Result],
    view: View | None,
    labels: Mapping[str, LabelSet],
) -> str:
    seen = findings.Findings()
    if view is not None:
        names = next((item.names for item in labels.values()), ())
        seen = findings.collect(view, names, found, min_slice_examples=limits.min_slice_examples)
    subject = report_transforms.subject(
        inputs.model_dir,
        None if view is None else view.split,
        view_transforms.shards([inputs.split_dir]),
        seen.units(),
        logs_dir=inputs.logs_dir,
        baseline_dir=inputs.baseline_dir,
    )
    return report.page(verdict, found, seen, subject)


def _costs(inputs: Inputs) -> dict[str, dict[str, float]]:
    """Returns times and sizes of the models by role."""
    from sigline.schemas import tf_example

    sample = []
    for serialized in tf_example.read_shard(view_transforms.shards([inputs.split_dir])[0]):
        sample.append(tf_example.decode(serialized))
        if len(sample) == _LATENCY_BATCH:
            break
    images, texts = [item.image for item in sample], [item.text[0] for item in sample]
    calls, found = {}, {}
    for role, folder in inputs.judged().items():
        model = served_model.load(folder)
        calls[role] = {
            f"latency_ms/{signature}@{len(values)}": _call(model, signature, values)
            for signature, values in (
                (signatures.EMBED_IMAGE, images[:1]),
                (signatures.EMBED_IMAGE, images),
                (signatures.EMBED_TEXT, texts[:1]),
            )
        }
        listed = FileSystems.match([posixpath.join(folder, "**")])[0].metadata_list
        found[role] = {"model_bytes": float(sum(item.size_in_bytes for item in listed))}
        metadata = served_model.metadata(folder)
        if "num_parameters" in metadata:
            found[role]["num_parameters"] = float(metadata["num_parameters"])
    for role, times in costs.latencies(calls).items():
        found[role] |= times
    return found


def _call(model, signature: str, values: list):
    return lambda: served_model.call(model, signature, values)
