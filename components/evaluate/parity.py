"""Whether the exported model is the one that was trained: equal answers about equal records."""

import json

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from sigline.components.evaluate.gate import Check
from sigline.components.evaluate.predictions import Predictions
from sigline.schemas import artifacts


def checks(split: Predictions, content: bytes, *, tolerance: float) -> list[Check]:
    """Returns a check for each kind of answer: the largest difference from those in the trainer.

    Args:
        split: Records as the exported model sees them.
        content: What `trainer/export/parity.py` wrote.
        tolerance: Largest difference of a number; embeddings are of length one, and logits of
            classes may differ by as much for each of the largest's size.

    Raises:
        ValueError: If the content is something else, or damaged.
    """
    try:
        arrays = safetensors.load(content)
        units = json.loads(arrays[artifacts.PARITY_UNITS].tobytes())
        names = (artifacts.PARITY_IMAGE, artifacts.PARITY_TEXT, artifacts.PARITY_CLASSES)
        trained = {name: arrays[name] for name in names if name in arrays}
        if artifacts.PARITY_IMAGE not in trained:
            raise KeyError(artifacts.PARITY_IMAGE)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"The trainer's answers cannot be read: {error}. Received: {len(content)} bytes"
        ) from None
    place = {unit: row for row, unit in enumerate(split.units)}
    unknown = sorted(set(units) - set(place))
    if not units or unknown:
        reason = f"the trainer embedded {len(units)} records, other than these: {unknown[:3]}"
        return [Check("parity", reason, None, None, passed=False)]
    rows = np.array([place[unit] for unit in units])
    exported = {artifacts.PARITY_IMAGE: split.image[rows]}
    known = {name: np.arange(len(rows)) for name in trained}
    if split.text is not None:
        # Only a record's first caption is compared; records without captions are left out.
        captioned = [bool(split.records[row].text) for row in rows]
        known[artifacts.PARITY_TEXT] = np.flatnonzero(captioned)
        first = split.text_starts[:-1][rows[captioned]]
        exported[artifacts.PARITY_TEXT] = split.text[first]
    if split.class_logits is not None:
        # Rounding errors grow with the size of the logits, so the tolerance does too.
        scale = max(float(np.abs(trained[artifacts.PARITY_CLASSES]).max(initial=0.0)), 1.0)
        trained[artifacts.PARITY_CLASSES] = trained[artifacts.PARITY_CLASSES] / scale
        exported[artifacts.PARITY_CLASSES] = split.class_logits[rows] / scale
    checked = []
    for name, values in trained.items():
        check = f"parity_max_difference/{name}"
        if name not in exported:
            checked.append(Check(check, "the exported model has none", None, None, passed=False))
            continue
        own = known[name]
        compared = [units[i] for i in own]
        if compared:
            checked.append(_check(check, exported[name], values[own], compared, tolerance))
    return checked


def _check(
    name: str, exported: np.ndarray, trained: np.ndarray, units: list[str], tolerance: float
) -> Check:
    if exported.shape != trained.shape:
        reason = f"{exported.shape[1]} numbers exported and {trained.shape[1]} in the trainer"
        return Check(name, reason, None, None, passed=False)
    gaps = np.abs(exported.astype(np.float64) - trained).max(axis=1)
    # Negated, so that NaN counts as a difference.
    wrong = ~(gaps <= tolerance)
    note = f"over {len(units)} records"
    if wrong.any():
        first = units[int(np.argmax(wrong))]
        note = f"{np.count_nonzero(wrong)} of {len(units)} records, the first {first}"
    rule = "from the model in the trainer at most"
    return Check(name, rule, float(gaps.max()), tolerance, not wrong.any(), note)
