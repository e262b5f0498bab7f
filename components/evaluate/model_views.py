"""Embeds splits with all models, and returns them as each model sees them."""

import dataclasses
import json
import posixpath
from collections.abc import Iterator, Mapping

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems

from sigline.components.evaluate import transforms
from sigline.components.evaluate.inputs import TEACHER, Inputs
from sigline.components.evaluate.predictions import Predictions
from sigline.components.evaluate.views import DEFAULT_PROMPTS, Scale, View
from sigline.components.shared import served_model
from sigline.components.shared.files import read_text, write_file
from sigline.schemas import class_tree, record, signatures
from sigline.schemas.labels import LabelSet

# Splits of a model: what it is judged by, what its probes learn from, and what is corrupted.
SPLIT, SUPPORT = "Split", "Support"


def embed(
    inputs: Inputs, scratch: str, pipeline: beam.Pipeline
) -> tuple[dict[str, dict[str, Predictions]], set[str] | None]:
    """Returns splits by role and name, and the digests of the trained pictures.

    Args:
        inputs: The models and the data.
        scratch: Folder for what is in between; it is removed.
        pipeline: A Beam pipeline that has not run yet.
    """
    jobs = _jobs(inputs)
    with pipeline as p:
        for (role, name), transform in jobs.items():
            _write(p | f"Embed{role}{name}" >> transform, role + name, scratch)
        if inputs.train_dirs:
            digests = (
                p
                | "TrainShards"
                >> beam.Create([path for x in inputs.train_dirs for path in transforms.shards(x)])
                | "SpreadTrainShards" >> beam.Reshuffle()
                | "Digests" >> beam.FlatMap(_picture_digests)
                | "Distinct" >> beam.Distinct()
            )
            _write(digests, "Train", scratch)
    splits: dict[str, dict[str, Predictions]] = {role: {} for role in inputs.models()}
    for role, name in jobs:
        splits[role][name] = transforms.load_split(_read(scratch, role + name))
    trained = set(_read(scratch, "Train")) if inputs.train_dirs else None
    FileSystems.delete([scratch])
    return splits, trained


def _jobs(inputs: Inputs) -> dict[tuple[str, str], transforms.EmbedSplit]:
    jobs = {}
    for role, model in inputs.models().items():
        folders = {SPLIT: inputs.split_dir}
        if inputs.support_dir and role != TEACHER:
            folders[SUPPORT] = inputs.support_dir
        for name, folder in folders.items():
            jobs[role, name] = transforms.EmbedSplit(folder, model, inputs.cache_dir)
        if role == TEACHER:
            continue
        for corruption in inputs.corruptions:
            jobs[role, corruption.name] = transforms.EmbedSplit(
                inputs.split_dir, model, inputs.cache_dir, corruption
            )
        for grid in served_model.grids(model):
            if grid != served_model.default_grid(model):
                jobs[role, _of_grid(grid)] = transforms.EmbedSplit(
                    inputs.split_dir, model, inputs.cache_dir, grid=grid
                )
    return jobs


def _of_grid(grid: int) -> str:
    return f"Grid{grid}"


def _write(items, name: str, scratch: str) -> None:
    _ = (
        items
        | f"List{name}" >> beam.combiners.ToList()
        # Sorted, since Beam keeps no order.
        | f"Write{name}" >> beam.Map(_write_sorted, posixpath.join(scratch, name))
    )


def _write_sorted(value: list[str], path: str) -> None:
    write_file(path, json.dumps(sorted(value)).encode())


def _read(scratch: str, name: str) -> list[str]:
    return json.loads(read_text(posixpath.join(scratch, name)))


def _common(
    by_role: Mapping[str, Mapping[str, Predictions]],
) -> dict[str, dict[str, Predictions]]:
    """Returns the splits with the records only that all models could read, as if no other were."""
    judged = [s for splits in by_role.values() for name, s in splits.items() if name != SUPPORT]
    support = [splits[SUPPORT] for splits in by_role.values() if SUPPORT in splits]
    units = {True: _units(support), False: _units(judged)}
    return {
        role: {
            name: dataclasses.replace(
                split.only([i for i, u in enumerate(split.units) if u in units[name == SUPPORT]]),
                unreadable=(),
            )
            for name, split in splits.items()
        }
        for role, splits in by_role.items()
    }


def _units(splits: list[Predictions]) -> set[str]:
    return set.intersection(*(set(split.units) for split in splits)) if splits else set()


def _picture_digests(path: str) -> Iterator[str]:
    from sigline.schemas import tf_example

    for serialized in tf_example.read_shard(path):
        yield tf_example.features(serialized)[record.IMAGE_SHA256][0].hex()


def all_labels(inputs: Inputs) -> dict[str, LabelSet]:
    """Returns label sets by the name of their prompts: those of `inputs`, and the candidate's own.

    Raises:
        ValueError: If there are other prompts of classes that are not given, or of another number.
    """
    text = served_model.asset(inputs.model_dir, signatures.LABELS_FILE)
    own = {} if text is None else {DEFAULT_PROMPTS: LabelSet.from_json(text)}
    label_sets = own | dict(inputs.labels)
    if label_sets and DEFAULT_PROMPTS not in label_sets:
        raise ValueError(
            "labels must have one without a name, which metrics are named after, since the model "
            f"holds no classes. Received: labels={sorted(label_sets)}"
        )
    counts = {name: len(item.names) for name, item in label_sets.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name or 'without a name'}: {n}" for name, n in counts.items())
        raise ValueError(
            f"labels must all be prompts of the same classes. Received: classes of {shown}"
        )
    return label_sets


def views(
    inputs: Inputs,
    embedded: Mapping[str, Mapping[str, Predictions]],
    labels: Mapping[str, LabelSet],
) -> dict[str, View]:
    """Returns what each model that is measured sees, by role: what all of them could read.

    Raises:
        ValueError: If embeddings are not finite, with the model and the keys.
    """
    common, by_role = _common(embedded), {}
    for role, model_dir in inputs.models().items():
        splits = common[role]
        if problems := [problem for split in splits.values() for problem in split.problems()]:
            raise ValueError(f"{role} {model_dir}: {'; '.join(problems)}")
        corrupted = {c.name: splits[c.name] for c in inputs.corruptions if c.name in splits}
        by_grid = {
            grid: splits.get(_of_grid(grid), splits[SPLIT])
            for grid in served_model.grids(model_dir)
            if role != TEACHER
        }
        by_role[role] = View(
            splits[SPLIT],
            _classes(model_dir, labels),
            _scale(model_dir),
            splits.get(SUPPORT),
            corrupted,
            by_grid,
            captioned=inputs.captioned,
            class_loss=served_model.metadata(model_dir).get("class_loss", "softmax"),
            levels=_levels(model_dir),
        )
    teacher = by_role.pop(TEACHER, None)
    return {role: dataclasses.replace(view, teacher=teacher) for role, view in by_role.items()}


def _classes(model_dir: str, labels: Mapping[str, LabelSet]) -> dict[str, np.ndarray]:
    """Returns embeddings of the classes by prompts; none of a model that reads no texts."""
    if not served_model.has(served_model.load(model_dir), signatures.EMBED_TEXT):
        return {}
    return {name: transforms.embed_classes(model_dir, item) for name, item in labels.items()}


def _levels(model_dir: str) -> tuple[int, ...]:
    """Returns the level of each class in the tree that the model's head learnt; empty without."""
    if served_model.metadata(model_dir).get("class_loss") != "semantic":
        return ()
    text = served_model.asset(model_dir, signatures.LABELS_FILE)
    assert text is not None, "A head that learnt a tree is exported with it."
    return class_tree.levels(LabelSet.from_json(text).parents)


def _scale(model_dir: str) -> Scale | None:
    metadata = served_model.metadata(model_dir)
    if "temperature" not in metadata:
        return None
    is_softmax = served_model.pair_loss(model_dir) == "softmax"
    return Scale(metadata["temperature"], metadata["bias"], softmax=is_softmax)
