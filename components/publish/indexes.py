"""An index is published beside the model that made it, and beside no other."""

import json
from pathlib import Path

from sigline.components.publish import publishing
from sigline.schemas import retrieval, signatures


def marker(index: str | Path, model: str | Path) -> str:
    """Returns the file that an index cannot be without, if it was made with a model.

    Args:
        index: The index.
        model: The SavedModel beside which it is to be published.

    Raises:
        ValueError: If the model is another one.
    """
    of_index = _read(index, retrieval.INDEX_FILE).get(retrieval.MODEL_DIGEST)
    of_model = _read(model, signatures.METADATA_FILE).get(retrieval.MODEL_DIGEST)
    if of_index is None or of_index != of_model:
        raise ValueError(
            "An index is published with the model that made it. Received: index of model "
            f"{str(of_index)[:12]}, model {str(of_model)[:12]}"
        )
    has_graph = (Path(index) / publishing.SAVED_MODEL).is_file()
    return publishing.SAVED_MODEL if has_graph else retrieval.FAISS_FILE


def _read(directory: str | Path, name: str) -> dict:
    path = Path(directory) / signatures.ASSETS_DIR / name
    if not path.is_file():
        raise ValueError(f"There is no {name}. Received: {directory}")
    return json.loads(path.read_text())
