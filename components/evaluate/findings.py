"""Examples to look at: the worst ones, search results, confusions, and the calibration."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sigline.components.evaluate import slices
from sigline.components.evaluate.metrics import calibration, classification, retrieval
from sigline.components.evaluate.results import Result
from sigline.components.evaluate.tasks import head
from sigline.components.evaluate.texts import Texts, distinct_texts
from sigline.components.evaluate.views import DEFAULT_PROMPTS, View, labelled

WORST = 5
_CONFUSIONS = 10
_FOUND = 3
_EXAMPLES = 4


@dataclass(frozen=True)
class Example:
    """A record and what the model predicts for it.

    Attributes:
        unit: The record.
        expected: What it is: its classes, or its captions.
        predictions: Classes or captions that the model predicts, the best first, each with its
            score: a cosine, a logit of the head, or a logarithm of a probability within a level.
        right: Whether the best is one of the expected.
        rank: How many wrong ones come before the first right one.
    """

    unit: str
    expected: tuple[str, ...]
    predictions: tuple[tuple[str, float], ...]
    right: bool
    rank: int


@dataclass(frozen=True)
class Findings:
    """The findings that a report shows besides its metrics.

    Attributes:
        worst: The examples that the model is furthest off with, the worst first.
        right: Some examples whose caption was found.
        wrong: Some whose caption was not.
        searches: For some captions, the images found: caption, units, whether each is right.
        confusions: Classes that are taken for others: the class, the other, how often.
        reliability: For each bin of probabilities: its share of the predictions, the predicted
            probability, and the share that was true.
        worst_slices: Slices that lie furthest below the whole: name and result.
    """

    worst: tuple[Example, ...] = ()
    right: tuple[Example, ...] = ()
    wrong: tuple[Example, ...] = ()
    searches: tuple[tuple[str, tuple[tuple[str, bool], ...]], ...] = ()
    confusions: tuple[tuple[str, str, int], ...] = ()
    reliability: tuple[tuple[float, float, float], ...] = ()
    worst_slices: tuple[tuple[str, Result], ...] = ()

    def units(self) -> set[str]:
        """Returns the records whose pictures are shown."""
        shown = {example.unit for example in (*self.worst, *self.right, *self.wrong)}
        return shown | {unit for _, images in self.searches for unit, _ in images}


def collect(
    view: View, names: Sequence[str], results: Mapping[str, Result], *, min_slice_examples: int
) -> Findings:
    """Returns what to look at; the same for the same embeddings.

    Args:
        view: The split as the candidate sees it.
        names: Names of the classes; empty without classes.
        results: The candidate's results, for the worst slices.
        min_slice_examples: Slices with fewer examples are left out.
    """
    positions = labelled(view.split)
    confusions, reliability, worst = (), (), ()
    scored = _scores(view, positions)
    if scored is not None:
        scores, probabilities = scored
        split = view.split.only(positions)
        labels = [np.unique(record.label) for record in split.records]
        names = tuple(names) or tuple(str(i) for i in range(scores.shape[1]))
        worst = _worst(split.units, scores, labels, names)
        single = np.array([len(classes) == 1 for classes in labels])
        first = np.array([classes[0] for classes in labels])
        predicted = classification.predictions(scores)
        confusions = tuple(
            classification.confusions(first[single], predicted[single], names, _CONFUSIONS)
        )
        reliability = _reliability(probabilities, labels)
    shown = Findings(
        worst=worst,
        confusions=confusions,
        reliability=reliability,
        worst_slices=_worst_slices(results, min_slice_examples),
    )
    return _with_captions(shown, view) if view.reads else shown


def _with_captions(shown: Findings, view: View) -> Findings:
    """Returns the findings with results of retrieval added."""
    view = dataclasses.replace(view, split=view.split.captioned())
    texts = distinct_texts(view.split)
    ranks, _ = retrieval.ranks(view.split.image, texts.embedding, texts.pairs)
    last = np.argsort(-ranks, kind="stable")[:WORST]
    return dataclasses.replace(
        shown,
        worst=shown.worst or _by_caption(view, texts, ranks, last),
        right=_by_caption(view, texts, ranks, _spread(np.flatnonzero(ranks == 0))),
        wrong=_by_caption(view, texts, ranks, _spread(np.flatnonzero(ranks > 0))),
        searches=_searches(view, texts),
    )


def _scores(view: View, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Returns scores and probabilities of the classes, by prompts or by the head, of some records.

    Probabilities are None where it is not known how the model makes them.
    """
    if not len(positions):
        return None
    split, prompts = view.split.only(positions), view.classes.get(DEFAULT_PROMPTS)
    if prompts is not None:
        scores = classification.class_scores(split.image, prompts)
        return scores, None if view.scale is None else view.scale.probabilities(scores)
    if split.class_logits is None:
        return None
    return head.of_head(view, split)


def _worst(
    units: tuple[str, ...],
    scores: np.ndarray,
    labels: list[np.ndarray],
    names: tuple[str, ...],
) -> tuple[Example, ...]:
    """Returns the examples whose right class lies furthest below the best one."""
    right = np.array([row[classes].max() for row, classes in zip(scores, labels, strict=True)])
    ranks = classification.ranks(scores, labels)
    order = np.argsort(-(scores.max(axis=1) - right), kind="stable")[:WORST]
    return tuple(
        Example(
            units[i],
            tuple(names[c] for c in labels[i]),
            tuple(
                (names[c], float(scores[i, c]))
                for c in np.argsort(-scores[i], kind="stable")[:_FOUND]
                # Others do not compete.
                if scores[i, c] > -np.inf
            ),
            bool(ranks[i] == 0),
            int(ranks[i]),
        )
        for i in order
    )


def _by_caption(
    view: View, texts: Texts, ranks: np.ndarray, positions: np.ndarray
) -> tuple[Example, ...]:
    """Returns some records with the captions that rank first for their images."""
    split, examples = view.split, []
    for i in positions:
        scores = texts.embedding @ split.image[i]
        best = np.argsort(-scores, kind="stable")[:_FOUND]
        shown = tuple((texts.text[t], float(scores[t])) for t in best)
        record = split.records[i]
        own = tuple(dict.fromkeys(record.text))
        examples.append(Example(record.unit, own, shown, bool(ranks[i] == 0), int(ranks[i])))
    return tuple(examples)


def _spread(positions: np.ndarray) -> np.ndarray:
    """Returns a few of some positions, from all over them."""
    places = np.linspace(0, len(positions) - 1, min(_EXAMPLES, len(positions)))
    return positions[places.astype(np.int64)]


def _searches(view: View, texts: Texts) -> tuple[tuple[str, tuple[tuple[str, bool], ...]], ...]:
    split = view.split
    chosen = _spread(np.arange(len(texts.text)))
    scores = texts.embedding[chosen] @ split.image.T
    pairs = {tuple(pair) for pair in texts.pairs.tolist()}
    return tuple(
        (
            texts.text[t],
            tuple(
                (split.records[i].unit, (int(i), int(t)) in pairs)
                for i in np.argsort(-row, kind="stable")[:WORST]
            ),
        )
        for t, row in zip(chosen, scores, strict=True)
    )


def _reliability(
    probabilities: np.ndarray | None, labels: list[np.ndarray]
) -> tuple[tuple[float, float, float], ...]:
    if probabilities is None:
        return ()
    came = np.zeros(probabilities.shape, bool)
    for row, classes in enumerate(labels):
        came[row, classes] = True
    count, mean, share = calibration.reliability(probabilities.ravel(), came.ravel())
    return tuple(
        (float(n / count.sum()), float(p), float(q))
        for n, p, q in zip(count, mean, share, strict=True)
        if n
    )


def _worst_slices(
    results: Mapping[str, Result], min_examples: int
) -> tuple[tuple[str, Result], ...]:
    """Returns the slices that lie furthest below their metric over all examples."""
    gaps = []
    for name, result in results.items():
        whole = results.get(name.partition("/")[0])
        if slices.is_part(name) and whole is not None and result.examples >= min_examples:
            gaps.append((whole.value - result.value, name, result))
    gaps.sort(key=lambda item: (-item[0], item[1]))
    return tuple((name, result) for gap, name, result in gaps[:WORST] if gap > 0)
