"""Judges a model: embeds a split with it and with the baseline, measures, compares, decides."""

import itertools
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from sigline.components.evaluate import (
    costs,
    evaluation,
    findings,
    gate,
    leaks,
    model_views,
    parity,
    report,
    report_subject,
    results,
    transforms,
)
from sigline.components.evaluate.inputs import BASELINE, CANDIDATE, Inputs
from sigline.components.evaluate.predictions import EvalRecord
from sigline.components.evaluate.tasks import grids
from sigline.components.evaluate.views import DEFAULT_PROMPTS, View
from sigline.components.shared import served_model
from sigline.components.shared.files import BeamFiles, write_file
from sigline.schemas import artifacts, run_reports, signatures
from sigline.schemas.gate import Gate
from sigline.schemas.labels import LabelSet

_LATENCY_BATCH = 16


@dataclass(frozen=True)
class Judgement:
    """The outcome of an evaluation.

    Attributes:
        results: Every metric with its interval, and the baseline beside it.
        verdict: Whether the gate lets the model pass, and why.
        views: The split as each model sees it, by role.
    """

    results: dict[str, results.Result]
    verdict: gate.Verdict
    views: dict[str, View]


def judge(
    inputs: Inputs,
    limits: Gate,
    output_dir: str,
    pipeline: beam.Pipeline,
    *,
    with_tfma: bool = False,
) -> Judgement:
    """Judges a model and writes `metrics.json`, `verdict.json` and `report.html` below a folder.

    A model whose embeddings are not finite, or that cannot read a picture of the split, is refused
    with the keys; nothing else is then measured.

    Args:
        inputs: The models and the data.
        limits: The gate.
        output_dir: Folder to write to.
        pipeline: A Beam pipeline that has not run yet.
        with_tfma: Whether to write the means over examples for TFMA too, with its slices.

    Raises:
        ValueError: If there is nothing to judge by, or a label has no class.
    """
    labels = model_views.all_labels(inputs)
    scratch = posixpath.join(output_dir, ".embedded")
    embedded, trained = model_views.embed(inputs, scratch, pipeline)
    # Corrupted splits may repeat a problem of the clean one; it is listed once.
    own = embedded[CANDIDATE]
    problems = list(dict.fromkeys(p for split in own.values() for p in split.problems()))
    same = []
    if inputs.parity_file and not problems:
        with BeamFiles().open(inputs.parity_file) as handle:
            content = handle.read()
        same = parity.checks(
            own[model_views.SPLIT], content, tolerance=limits.max_parity_difference
        )
    views, metrics = {}, {}
    if not problems:
        views = model_views.views(inputs, embedded, labels)
        measured = {role: evaluation.measures(view) for role, view in views.items()}
        metrics = results.summarize(
            measured[CANDIDATE],
            measured.get(BASELINE),
            confidence=limits.confidence,
            seed_std=limits.seed_std,
        )
        spent = _costs(inputs, set(views[CANDIDATE].split.units))
        metrics |= results.costs(spent[CANDIDATE], spent.get(BASELINE))
        if trained is not None:
            leaked = leaks.measures(views[CANDIDATE].split.records, trained)
            metrics |= results.summarize(leaked, None, confidence=limits.confidence)
        if with_tfma:
            # Importing TFMA takes long.
            from sigline.components.evaluate import tfma_results

            names = _class_names(labels)
            tfma_results.write(views[CANDIDATE], measured[CANDIDATE], names, output_dir)
    verdict = gate.judge(
        metrics,
        limits,
        has_baseline=inputs.baseline_dir is not None,
        problems=problems,
        more=same,
    )
    for name, value in (
        (artifacts.METRICS_FILE, results.to_dict(metrics)),
        (artifacts.VERDICT_FILE, verdict.to_dict()),
    ):
        content = json.dumps(value, indent=1, sort_keys=True).encode()
        write_file(posixpath.join(output_dir, name), content)
    reports = run_reports.address(output_dir)
    page = _report(inputs, limits, verdict, metrics, views.get(CANDIDATE), labels, reports)
    write_file(posixpath.join(output_dir, artifacts.REPORT_FILE), page.encode())
    return Judgement(metrics, verdict, views)


def _report(
    inputs: Inputs,
    limits: Gate,
    verdict: gate.Verdict,
    metrics: Mapping[str, results.Result],
    view: View | None,
    labels: Mapping[str, LabelSet],
    reports: str,
) -> str:
    remarkable = findings.Findings()
    if view is not None:
        names = _class_names(labels)
        remarkable = findings.collect(
            view, names, metrics, min_slice_examples=limits.min_slice_examples
        )
    subject = report_subject.subject(
        inputs.model_dir,
        None if view is None else view.split,
        transforms.shards(inputs.split_dir),
        remarkable.units(),
        logs_dir=inputs.logs_dir,
        baseline_dir=inputs.baseline_dir,
        reports=reports,
    )
    return report.page(verdict, metrics, remarkable, subject)


def _class_names(labels: Mapping[str, LabelSet]) -> tuple[str, ...]:
    return labels[DEFAULT_PROMPTS].names if labels else ()


def _costs(inputs: Inputs, units: set[str]) -> dict[str, dict[str, costs.Cost]]:
    """Returns times and sizes of the models by role; times are of records that all can read."""
    from sigline.schemas import tf_example

    shards = transforms.shards(inputs.split_dir)
    records = map(
        tf_example.decode, itertools.chain.from_iterable(map(tf_example.read_shard, shards))
    )
    known = (item for item in records if EvalRecord.of(item).unit in units)
    # A split with too few records repeats them, so that every model is timed on a full batch.
    sample = list(
        itertools.islice(itertools.cycle(itertools.islice(known, _LATENCY_BATCH)), _LATENCY_BATCH)
    )
    images, texts = [item.image for item in sample], [x.text[0] for x in sample if x.text]
    models = {role: served_model.load(folder) for role, folder in inputs.judged().items()}
    requests: list[tuple[str, list]] = [
        (signatures.EMBED_IMAGE, images[:1]),
        (signatures.EMBED_IMAGE, images),
        (signatures.EMBED_TEXT, texts[:1]),
        (signatures.CLASS_LOGITS, images[:1]),
    ]
    # Only signatures that all models have are timed, so that the models can take turns.
    requests = [
        (signature, values)
        for signature, values in requests
        if values and all(served_model.has(model, signature) for model in models.values())
    ]
    calls, measured = {}, {}
    for role, folder in inputs.judged().items():
        calls[role] = {
            f"latency_ms/{signature}@{len(values)}": _call(models[role], signature, values)
            for signature, values in requests
        }
        for grid in served_model.grids(folder):
            signature = signatures.at_grid(signatures.EMBED_IMAGE, grid)
            name = f"latency_ms/{signatures.EMBED_IMAGE}@1/{grids.DIMENSION}={grid}"
            calls[role][name] = _call(models[role], signature, images[:1])
        sizes = [FileSystems.get_filesystem(x).size(x) for x in BeamFiles().find(folder)]
        measured[role] = {"model_bytes": costs.Cost(float(sum(sizes)))}
        metadata = served_model.metadata(folder)
        if "num_parameters" in metadata:
            measured[role]["num_parameters"] = costs.Cost(float(metadata["num_parameters"]))
    for role, times in costs.latencies(calls).items():
        measured[role] |= times
    return measured


def _call(model, signature: str, values: list):
    return lambda: served_model.call(model, signature, values)
