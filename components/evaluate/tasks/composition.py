"""Composition: captions that nearly fit, and pairs of the same words put together otherwise."""

import numpy as np

from sigline.components.evaluate.metrics import composition, intervals
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.views import View


def measures(view: View) -> dict[str, Measure]:
    """Returns how often an image's caption scores above captions that nearly fit."""
    if not view.reads:
        return {}
    split = view.split.captioned()
    assert split.text is not None
    assert split.negative is not None
    measured, starts, negatives = {}, split.text_starts, split.negative_starts
    several = np.flatnonzero(np.diff(negatives))
    if len(several):
        image = split.image[several]
        right = np.einsum("nd,nd->n", image, split.text[starts[several]])
        wrong = [
            (split.negative[negatives[i] : negatives[i + 1]] @ split.image[i]).max()
            for i in several
        ]
        measured["negative_caption_accuracy"] = intervals.mean(
            [split.records[i].unit for i in several],
            composition.sugar_crepe(right, np.array(wrong)),
            chances=1.0 / (1.0 + np.diff(negatives)[several]),
        )
    groups: dict[str, list[int]] = {}
    for place, record in enumerate(split.records):
        if record.group:
            groups.setdefault(record.group, []).append(place)
    # A record whose partner is missing has nothing to be told apart from.
    whole = {name: places for name, places in sorted(groups.items()) if len(places) == 2}
    if whole:
        places = np.array(list(whole.values()))
        scores = np.einsum("gid,gjd->gij", split.image[places], split.text[starts[:-1][places]])
        for name, right in composition.winoground(scores).items():
            chance = 1 / 6 if name == "acc" else 1 / 4
            measured[f"winoground_{name}"] = intervals.mean(
                list(whole), right, chances=np.full(len(whole), chance)
            )
    return measured
