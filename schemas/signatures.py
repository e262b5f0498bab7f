"""The served model's contract: signature names, tensor names and asset files."""

import re

SERVING_DEFAULT = "serving_default"
EMBED_IMAGE = "embed_image"
EMBED_IMAGE_SAFE = "embed_image_safe"
EMBED_TEXT = "embed_text"
SIMILARITY = "similarity"
CLASSIFY = "classify"
CLASS_LOGITS = "class_logits"
# Signatures of images. A model with several grids has each of them at every grid; see `at_grid`.
OF_IMAGES = frozenset({EMBED_IMAGE, EMBED_IMAGE_SAFE, SIMILARITY, CLASSIFY, CLASS_LOGITS})

IMAGE_BYTES = "image_bytes"
TEXT = "text"
EMBEDDING = "embedding"
VALID = "valid"
LOGITS = "logits"
PROBABILITIES = "probabilities"
CLASSES = "classes"
SCORES = "scores"

# Keys of a model's metadata: its grids (patches along a side), and the grid of signatures without
# a number. Only models with several grids have them.
GRIDS, DEFAULT_GRID = "grids", "default_grid"

# Files in the SavedModel's `assets.extra`, which every loader leaves alone.
ASSETS_DIR = "assets.extra"
METADATA_FILE = "sigline.json"
CONFIG_FILE = "config.json"
LABELS_FILE = "labels.json"
# TF Serving's name of the requests that it runs before it serves a model.
WARMUP_FILE = "tf_serving_warmup_requests"
VOCABULARY_FILE = "sentencepiece.model"
# The vocabulary in the form that it was imported in, if that was another one.
TOKENIZER_FOLDER = "tokenizer"


def at_grid(signature: str, grid: int | None) -> str:
    """Returns the name of a signature at a grid of patches, such as `embed_image_g7`.

    Letters, digits and underscores alone, so that it is a word in shells, URLs, YAML and metrics,
    in which `embed_image@7` is the time of seven images.

    Args:
        signature: The name of the default grid's.
        grid: Patches along a side; None for the default.
    """
    return signature if grid is None else f"{signature}_g{grid}"


def split_grid(signature: str) -> tuple[str, int | None]:
    """Returns what `at_grid` made a name of; the grid is None in a name without one."""
    match = re.fullmatch(r"(\w+)_g(\d+)", signature)
    return (match[1], int(match[2])) if match else (signature, None)
