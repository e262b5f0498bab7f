"""Loads weights and label sets for several commands."""

import sys
from pathlib import Path

from sigline import arguments as checks


def weights(path: str | Path):
    """Loads weights; prints the settings that a foreign file does not hold and that are assumed."""
    from sigline.trainer.weights import weight_folders

    loaded = weight_folders.load(path)
    for item in loaded.assumed:
        print(f"Assumed for {path}: {item}", file=sys.stderr)
    return loaded


def labels(path: Path | None):
    """Loads the label set of a file; None for None."""
    from sigline.schemas.labels import LabelSet

    checks.check_file(path, "--labels")
    try:
        return LabelSet.from_json(path.read_text()) if path else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--labels must be a label set. Received: {path}: {error}") from None
