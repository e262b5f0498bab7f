"""Whether the exported model is the one that was trained: equal embeddings of equal records."""

import json

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from sigline.components.evaluate.embeddings import EmbeddedSplit
from sigline.schemas import artifacts


def problems(split: EmbeddedSplit, content: bytes, *, tolerance: float) -> list[str]:
    """Returns a sentence for each tower whose embeddings differ from those in the trainer.

    Args:
        split: Records as the exported model sees them.
        content: What `trainer/parity.py` wrote.
        tolerance: Largest difference of a number; embeddings are of length one.

    Raises:
        ValueError: If the content is something else, or damaged.
    """
    try:
        arrays = safetensors.load(content)
        units = json.loads(arrays[artifacts.PARITY_UNITS].tobytes())
        image, text = arrays[artifacts.PARITY_IMAGE], arrays[artifacts.PARITY_TEXT]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"The trainer's embeddings cannot be read: {error}") from None
    place = {unit: row for row, unit in enumerate(split.units)}
    if not units or not set(units) <= set(place):
        return [
            f"the trainer embedded {len(units)} records, "
            f"{len(set(units) - set(place))} of which the exported model was not shown"
        ]
    rows = np.array([place[unit] for unit in units])
    exported = {"image": split.image[rows], "text": split.text[split.text_starts[:-1][rows]]}
    found = []
    for name, trained in (("image", image), ("text", text)):
        if trained.shape != exported[name].shape:
            found.append(
                f"{name} embeddings have {exported[name].shape[1]} numbers exported and "
                f"{trained.shape[1]} in the trainer"
            )
            continue
        gaps = np.abs(exported[name].astype(np.float64) - trained).max(axis=1)
        # Not "larger" but "not smaller": NaN differs too.
        wrong = ~(gaps <= tolerance)
        if wrong.any():
            first = units[int(np.argmax(wrong))]
            found.append(
                f"{np.count_nonzero(wrong)} of {len(units)} {name} embeddings differ between the "
                f"trainer and the exported model by more than {tolerance:g}, the largest by "
                f"{gaps.max():.3g}; the first is {first}"
            )
    return found
