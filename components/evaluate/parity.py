"""Whether the exported model is the one that was trained: equal embeddings of equal records."""

import json

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from sigline.components.evaluate.embeddings import EmbeddedSplit
from sigline.components.evaluate.gate import Check
from sigline.schemas import artifacts


def checks(split: EmbeddedSplit, content: bytes, *, tolerance: float) -> list[Check]:
    """Returns a check for each tower: the largest difference from the embeddings in the trainer.

    Args:
        split: Records as the exported model sees them.
        content: What `trainer/export/parity.py` wrote.
        tolerance: Largest difference of a number; embeddings are of length one.

    Raises:
        ValueError: If the content is something else, or damaged.
    """
    try:
        arrays = safetensors.load(content)
        units = json.loads(arrays[artifacts.PARITY_UNITS].tobytes())
        trained = {
            "image": arrays[artifacts.PARITY_IMAGE],
            "text": arrays[artifacts.PARITY_TEXT],
        }
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"The trainer's embeddings cannot be read: {error}") from None
    place = {unit: row for row, unit in enumerate(split.units)}
    unknown = sorted(set(units) - set(place))
    if not units or unknown:
        reason = f"the trainer embedded {len(units)} records, other than these: {unknown[:3]}"
        return [Check("parity", reason, None, None, passed=False)]
    rows = np.array([place[unit] for unit in units])
    exported = {"image": split.image[rows], "text": split.text[split.text_starts[:-1][rows]]}
    return [
        _check(f"parity_max_difference/{name}", exported[name], trained[name], units, tolerance)
        for name in trained
    ]


def _check(
    name: str, exported: np.ndarray, trained: np.ndarray, units: list[str], tolerance: float
) -> Check:
    if exported.shape != trained.shape:
        reason = f"{exported.shape[1]} numbers exported and {trained.shape[1]} in the trainer"
        return Check(name, reason, None, None, passed=False)
    gaps = np.abs(exported.astype(np.float64) - trained).max(axis=1)
    # Not "larger" but "not smaller": NaN differs too.
    wrong = ~(gaps <= tolerance)
    note = f"over {len(units)} records"
    if wrong.any():
        first = units[int(np.argmax(wrong))]
        note = f"{np.count_nonzero(wrong)} of {len(units)} records, the first {first}"
    rule = "from the model in the trainer at most"
    return Check(name, rule, float(gaps.max()), tolerance, not wrong.any(), note)
