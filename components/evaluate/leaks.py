"""Whether a model was trained on what it is judged by."""

from collections.abc import Iterable

from sigline.components.evaluate.metrics import intervals
from sigline.components.evaluate.metrics.intervals import Measure
from sigline.components.evaluate.predictions import EvalRecord

LEAKED = "leaked_share"


def measures(records: Iterable[EvalRecord], trained: set[str]) -> dict[str, Measure]:
    """Returns `leaked_share`: of records whose picture, byte for byte, was trained on.

    Copies that differ in bytes are found where the data is made, by ingest, which has the pictures.

    Args:
        records: What the model is judged by.
        trained: SHA-256 in hex of the trained pictures' bytes.
    """
    records = list(records)
    units = [record.unit for record in records]
    return {LEAKED: intervals.mean(units, [item.image_sha256 in trained for item in records])}
