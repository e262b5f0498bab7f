"""From a model's embeddings of a split to measures, by name."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sigline.components.evaluate import slices
from sigline.components.evaluate.embeddings import EmbeddedSplit
from sigline.components.evaluate.metrics import (
    agreement,
    calibration,
    classification,
    composition,
    health,
    intervals,
    probes,
    retrieval,
)
from sigline.components.evaluate.metrics.intervals import Measure

RECALL_AT = (1, 5, 10)
NEIGHBORS = 20
# Of the temperature of votes; arXiv 1805.01978.
_VOTE_TEMPERATURE = 0.07
_PROBED_SHOTS = (1, 5, 10)

ACCURACY = "zero_shot_accuracy"
IMAGE_TO_TEXT = "image_to_text"
TEXT_TO_IMAGE = "text_to_image"
# The classes' prompts that a metric without a suffix is of.
DEFAULT_PROMPTS = ""


@dataclass(frozen=True)
class Scale:
    """How the model makes probabilities of cosines.

    Attributes:
        temperature: Cosines are multiplied by it.
        bias: What is added then.
        softmax: Whether texts compete, instead of every pair on its own.
    """

    temperature: float
    bias: float
    softmax: bool = False

    def probabilities(self, cosines: np.ndarray) -> np.ndarray:
        """Returns probabilities of the same shape, float64; texts are the last axis."""
        logits = self.temperature * np.asarray(cosines, np.float64) + self.bias
        if self.softmax:
            logits = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return logits / logits.sum(axis=-1, keepdims=True)
        # Of both signs without overflow.
        return np.exp(-np.logaddexp(0.0, -logits))


@dataclass(frozen=True)
class View:
    """A split as one model sees it.

    Attributes:
        split: Records with their embeddings.
        classes: Unit embeddings of the classes, shape `(classes, dim)`, by the name of their
            prompts, such as a language; `DEFAULT_PROMPTS` among them, if there are any.
        scale: How the model makes probabilities; None if that is not known.
        support: Labelled records that probes learn from, as the model sees them; none by default.
        corrupted: Embeddings of the same images after a corruption, shape `(records, dim)`, by the
            corruption's name.
        teacher: The same records as a teacher sees them; none by default.
        captioned: Whether captions are to be retrieved.
    """

    split: EmbeddedSplit
    classes: Mapping[str, np.ndarray] = field(default_factory=dict)
    scale: Scale | None = None
    support: EmbeddedSplit | None = None
    corrupted: Mapping[str, np.ndarray] = field(default_factory=dict)
    teacher: "View | None" = None
    captioned: bool = True


def measures(view: View) -> dict[str, Measure]:
    """Returns all measures that a split allows, by name; slices as `NAME/DIMENSION=VALUE`.

    Raises:
        ValueError: If embeddings are not finite, with the keys, or a label has no class.
    """
    if problems := view.split.problems():
        raise ValueError("; ".join(problems))
    found: dict[str, Measure] = {}
    for prompts, classes in view.classes.items():
        suffix = f"/prompts={prompts}" if prompts != DEFAULT_PROMPTS else ""
        for name, measure in _zero_shot(view, classes, sliced=not suffix).items():
            found[name + suffix] = measure
    if view.captioned:
        found |= _retrieval(view.split)
    found |= _health(view.split) | _probes(view)
    return found | _composition(view.split) | _corrupted(view) | _teacher(view)


def labelled(split: EmbeddedSplit) -> np.ndarray:
    """Returns the positions of records with a label."""
    return np.array([i for i, record in enumerate(split.records) if record.label], np.int64)


def _zero_shot(view: View, classes: np.ndarray, *, sliced: bool) -> dict[str, Measure]:
    split = view.split.only(labelled(view.split))
    if not split.records:
        return {}
    labels = [np.unique(record.label) for record in split.records]
    for record in split.records:
        if min(record.label) < 0 or max(record.label) >= len(classes):
            raise ValueError(
                f"Labels must be classes, of which there are {len(classes)}. "
                f"Received: label={list(record.label)}, key={record.unit}"
            )
    scores = classification.class_scores(split.image, classes)
    counts = np.array([len(wanted) for wanted in labels])
    ranks = classification.ranks(scores, labels)
    found = {}
    for k in (1, 5):
        if k < len(classes):
            name = ACCURACY if k == 1 else f"{ACCURACY}@{k}"
            chances = retrieval.chance_at_k(len(classes), counts, k)
            found[name] = intervals.mean(split.units, ranks < k, chances=chances)
    if sliced and ACCURACY in found:
        by = _transposed(slices.of_record(record) for record in split.records)
        found |= slices.sliced(ACCURACY, found[ACCURACY], by)
    return found | _by_class(split, scores, labels, counts) | _calibration(view, split, scores)


def _by_class(
    split: EmbeddedSplit, scores: np.ndarray, labels: list[np.ndarray], counts: np.ndarray
) -> dict[str, Measure]:
    found, single = {}, counts == 1
    if single.any():
        first = np.array([wanted[0] for wanted in labels])[single]
        right = classification.predictions(scores[single]) == first
        found["zero_shot_mean_class_recall"] = intervals.mean_of_means(
            _at(split.units, single),
            right,
            first,
            chances=np.full(len(first), 1.0 / scores.shape[1]),
        )
    if not single.all():
        several = ~single
        last = classification.last_ranks(scores[several], [x for x in labels if len(x) > 1])
        found["zero_shot_all_labels"] = intervals.mean(_at(split.units, several), last == 0)
        found["zero_shot_mean_average_precision"] = _mean_average_precision(split, scores, labels)
    return found


def _at(units: tuple[str, ...], chosen: np.ndarray) -> list[str]:
    return [units[i] for i in np.flatnonzero(chosen)]


def _mean_average_precision(
    split: EmbeddedSplit, scores: np.ndarray, labels: list[np.ndarray]
) -> Measure:
    relevant = np.zeros(scores.shape, bool)
    for row, wanted in enumerate(labels):
        relevant[row, wanted] = True
    by_class = [
        classification.average_precision(scores[:, c], relevant[:, c])
        for c in np.flatnonzero(relevant.any(axis=0))
    ]

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.nanmean([of(weights) for of in by_class], axis=0)

    return Measure(split.units, statistic, costly=True)


def _calibration(view: View, split: EmbeddedSplit, scores: np.ndarray) -> dict[str, Measure]:
    if view.scale is None:
        return {}
    said = view.scale.probabilities(scores)
    came = np.zeros(said.shape, bool)
    for row, record in enumerate(split.records):
        came[row, list(record.label)] = True
    brier = calibration.squared_error(said, came).mean(axis=1)
    return {
        "zero_shot_calibration_error": calibration.calibration_error(split.units, said, came),
        "zero_shot_brier_score": intervals.mean(split.units, brier),
    }


@dataclass(frozen=True)
class Texts:
    """The distinct captions of a split, and which images they belong to.

    Attributes:
        text: The captions.
        embedding: Their embeddings, shape `(texts, dim)`.
        pairs: Positions of images and texts that belong together, shape `(pairs, 2)`.
        first: The first image of each, shape `(texts,)`.
        slices: The slice of each, by dimension: that of the first record that has it.
    """

    text: tuple[str, ...]
    embedding: np.ndarray
    pairs: np.ndarray
    first: np.ndarray
    slices: dict[str, list[slices.Value]]


def distinct_texts(split: EmbeddedSplit) -> Texts:
    """Returns the captions; those that read the same are one, which all their images match."""
    position: dict[str, int] = {}
    rows, pairs, first, by = [], set(), [], []
    starts = split.text_starts
    for image, record in enumerate(split.records):
        for number, text in enumerate(record.text):
            if text not in position:
                position[text] = len(rows)
                rows.append(starts[image] + number)
                first.append(image)
                by.append(slices.of_caption(record, number))
            pairs.add((image, position[text]))
    return Texts(
        tuple(position),
        split.text[rows],
        np.array(sorted(pairs), np.int64),
        np.array(first),
        _transposed(by),
    )


def _retrieval(split: EmbeddedSplit) -> dict[str, Measure]:
    texts = distinct_texts(split)
    to_text, to_image = retrieval.ranks(split.image, texts.embedding, texts.pairs)
    by_record = _transposed(slices.of_record(record) for record in split.records)
    found: dict[str, Measure] = {}
    # Captions of one image are hard or easy together, and are drawn together.
    _, clusters = np.unique(texts.first, return_inverse=True)
    for name, units, ranks, gallery, side, by, together in (
        (IMAGE_TO_TEXT, split.units, to_text, len(texts.text), 0, by_record, None),
        (TEXT_TO_IMAGE, texts.text, to_image, len(split.records), 1, texts.slices, clusters),
    ):
        positives = np.bincount(texts.pairs[:, side], minlength=len(units))
        for k in RECALL_AT:
            recall = f"{name}_recall@{k}"
            chances = retrieval.chance_at_k(gallery, positives, k)
            found[recall] = intervals.mean(units, ranks < k, clusters=together, chances=chances)
            if k == RECALL_AT[0]:
                found |= slices.sliced(recall, found[recall], by)
        found[f"{name}_mean_rank"] = intervals.mean(units, ranks + 1, clusters=together)
        found[f"{name}_median_rank"] = intervals.median(units, ranks + 1, clusters=together)
    return found


def _transposed(rows: Iterable[dict[str, slices.Value]]) -> dict[str, list[slices.Value]]:
    found: dict[str, list[slices.Value]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def _health(split: EmbeddedSplit) -> dict[str, Measure]:
    units, starts = split.units, split.text_starts
    sums = np.add.reduceat(split.text.astype(np.float64), starts[:-1], axis=0)
    text = sums / np.diff(starts)[:, None]
    first = split.text[starts[:-1]]
    matching = np.einsum("nd,nd->n", split.image.astype(np.float64), text)
    found = {
        "image_norm": intervals.mean(units, np.linalg.norm(split.image, axis=1)),
        "text_norm": intervals.mean(units, np.linalg.norm(first, axis=1)),
        "image_effective_rank": health.effective_rank(units, split.image),
        "text_effective_rank": health.effective_rank(units, first),
        "modality_gap": health.modality_gap(units, split.image, text),
        "pair_similarity": intervals.mean(units, matching),
    }
    if len(units) > 1:
        found["image_mean_similarity"] = health.mean_similarity(units, split.image)
        found["text_mean_similarity"] = health.mean_similarity(units, first)
    return found


def _probes(view: View) -> dict[str, Measure]:
    """Returns what probes reach on records with one label; each learns from the support's."""
    if view.support is None:
        return {}
    query, wanted = _one_label(view.split)
    support, labels = _one_label(view.support)
    if not len(wanted) or not len(labels):
        return {}
    x, s = query.image, support.image
    neighbors = probes.nearest_neighbors(s, labels, x, k=NEIGHBORS, temperature=_VOTE_TEMPERATURE)
    linear = probes.logistic(s, labels, x).argmax(axis=1)
    right = {
        f"knn_accuracy@{NEIGHBORS}": neighbors == wanted,
        "nearest_mean_accuracy": probes.nearest_mean(s, labels, x) == wanted,
        "linear_probe_accuracy": linear == wanted,
    }
    for count in _PROBED_SHOTS:
        hits = []
        for seed in range(probes.SEEDS):
            chosen = probes.shots(labels, count, seed=seed)
            hits.append(probes.ridge(s[chosen], labels[chosen], x).argmax(axis=1) == wanted)
        right[f"few_shot_accuracy@{count}"] = np.mean(hits, axis=0)
    return {name: intervals.mean(query.units, values) for name, values in right.items()}


def _composition(split: EmbeddedSplit) -> dict[str, Measure]:
    """Returns how often an image's caption is told from ones that nearly fit."""
    found, starts, negatives = {}, split.text_starts, split.negative_starts
    several = np.flatnonzero(np.diff(negatives))
    if len(several):
        image = split.image[several]
        right = np.einsum("nd,nd->n", image, split.text[starts[several]])
        wrong = [
            (split.negative[negatives[i] : negatives[i + 1]] @ split.image[i]).max()
            for i in several
        ]
        found["negative_caption_accuracy"] = intervals.mean(
            [split.records[i].unit for i in several],
            composition.sugar_crepe(right, np.array(wrong)),
            chances=1.0 / (1.0 + np.diff(negatives)[several]),
        )
    groups: dict[str, list[int]] = {}
    for place, record in enumerate(split.records):
        if record.group:
            groups.setdefault(record.group, []).append(place)
    # What has lost its partner cannot be told from it.
    whole = {name: places for name, places in sorted(groups.items()) if len(places) == 2}
    if whole:
        places = np.array(list(whole.values()))
        scores = np.einsum("gid,gjd->gij", split.image[places], split.text[starts[:-1][places]])
        for name, right in composition.winoground(scores).items():
            chance = 1 / 6 if name == "acc" else 1 / 4
            found[f"winoground_{name}"] = intervals.mean(
                list(whole), right, chances=np.full(len(whole), chance)
            )
    return found


def _corrupted(view: View) -> dict[str, Measure]:
    """Returns the main metrics of corrupted images, as `NAME/corruption=KIND@SEVERITY`."""
    found = {}
    for name, image in view.corrupted.items():
        split = dataclasses.replace(view.split, image=image)
        part = dataclasses.replace(view, split=split, scale=None)
        measured = _retrieval(split) if view.captioned else {}
        if view.classes:
            measured |= _zero_shot(part, view.classes[DEFAULT_PROMPTS], sliced=False)
        for metric in (ACCURACY, f"{IMAGE_TO_TEXT}_recall@1", f"{TEXT_TO_IMAGE}_recall@1"):
            if metric in measured:
                found[f"{metric}/corruption={name}"] = measured[metric]
    return found


def _teacher(view: View) -> dict[str, Measure]:
    """Returns how far the model's choice of class is from its teacher's."""
    if view.teacher is None or not view.classes or not view.teacher.classes:
        return {}
    scores = []
    for seen in (view, view.teacher):
        cosines = classification.class_scores(seen.split.image, seen.classes[DEFAULT_PROMPTS])
        scores.append(cosines * (seen.scale.temperature if seen.scale else 1.0))
    return {
        "teacher_agreement": intervals.mean(view.split.units, agreement.agreement(*scores)),
        "teacher_divergence": intervals.mean(view.split.units, agreement.divergence(*scores)),
    }


def _one_label(split: EmbeddedSplit) -> tuple[EmbeddedSplit, np.ndarray]:
    positions = [i for i, record in enumerate(split.records) if len(set(record.label)) == 1]
    part = split.only(np.array(positions, np.int64))
    return part, np.array([record.label[0] for record in part.records], np.int64)
