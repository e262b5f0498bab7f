"""Retrieval: captions of images, and images of captions."""

import numpy as np

from sigline.components.evaluate import slices
from sigline.components.evaluate.metrics import intervals, retrieval
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.predictions import Predictions
from sigline.components.evaluate.texts import distinct_texts
from sigline.components.evaluate.views import View

RECALL_AT = (1, 5, 10)
IMAGE_TO_TEXT = "image_to_text"
TEXT_TO_IMAGE = "text_to_image"


def measures(view: View) -> dict[str, Measure]:
    """Returns recalls and ranks; none where no captions are read."""
    return of_split(view.split) if view.captioned and view.reads else {}


def of_split(split: Predictions) -> dict[str, Measure]:
    """Returns recalls and ranks of the records that have a caption."""
    split = split.captioned()
    texts = distinct_texts(split)
    to_text, to_image = retrieval.ranks(split.image, texts.embedding, texts.pairs)
    by_record = slices.transposed(slices.of_record(record) for record in split.records)
    measured: dict[str, Measure] = {}
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
            measured[recall] = intervals.mean(units, ranks < k, clusters=together, chances=chances)
            if k == RECALL_AT[0]:
                measured |= slices.sliced(recall, measured[recall], by)
        measured[f"{name}_mean_rank"] = intervals.mean(units, ranks + 1, clusters=together)
        measured[f"{name}_median_rank"] = intervals.median(units, ranks + 1, clusters=together)
    return measured
