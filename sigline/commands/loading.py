"""What several commands load: weights and label sets."""

import sys
from pathlib import Path

from sigline import arguments as checks


def weights(path: str | Path):
    """Returns weights; what a foreign file does not tell, and was assumed, is printed."""
    from sigline.trainer.weights import weight_folders

    loaded = weight_folders.load(path)
    for item in loaded.assumed:
        print(f"Assumed of {path}: {item}", file=sys.stderr)
    return loaded


def labels(path: Path | None):
    """Returns the label set of a file; None of none."""
    from sigline.schemas.labels import LabelSet

    checks.check_file(path, "--labels")
    try:
        return LabelSet.from_json(path.read_text()) if path else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--labels must be a label set. Received: {path}: {error}") from None
