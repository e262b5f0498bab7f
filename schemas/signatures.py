"""The served model's contract: signature names, tensor names and asset files."""

SERVING_DEFAULT = "serving_default"
EMBED_IMAGE = "embed_image"
EMBED_IMAGE_SAFE = "embed_image_safe"
EMBED_TEXT = "embed_text"
SIMILARITY = "similarity"
CLASSIFY = "classify"
CLASS_LOGITS = "class_logits"

IMAGE_BYTES = "image_bytes"
TEXT = "text"
EMBEDDING = "embedding"
VALID = "valid"
LOGITS = "logits"
PROBABILITIES = "probabilities"
CLASSES = "classes"
SCORES = "scores"

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
