"""Names of files inside the pipeline's artifacts, and of the properties set on them."""

from pathlib import Path

# The schema of records, curated by hand, as TFDV's text.
SCHEMA = Path(__file__).parent / "image_text.pbtxt"
COUNTS_FILE = "counts.json"
REJECTED_FOLDER = "rejected"
# Below an ingest report: the names of all entries of the input that were passed over.
PASSED_OVER_FOLDER = "passed_over"
# Below a data report: counts of outcomes for each part of the input, in img2dataset's format.
STATS_FOLDER = "stats"
# Statistics of the pairs that were written, and a sample of them.
PROFILE_FILE = "profile.json"
SAMPLES_FILE = "samples.json"
REPORT_FILE = "report.html"
VOCABULARY_FILE = "sentencepiece.model"
PROBLEMS_FILE = "problems.json"
WARNINGS_FILE = "warnings.json"
TRAINING_FILE = "training.json"
# Outputs of the model in the trainer on eval records, as safetensors, and the names in them.
PARITY_FILE = "parity.safetensors"
PARITY_IMAGE, PARITY_TEXT, PARITY_UNITS = "image", "text", "units"
PARITY_CLASSES = "class_logits"
METRICS_FILE = "metrics.json"
VERDICT_FILE = "verdict.json"
INFRA_REPORT_FILE = "infra.json"
CARD_FILE, CARD_PAGE = "model_card.json", "model_card.md"

# Below the artifact of an index, where it appears whole or not at all.
INDEX_FOLDER = "index"
BUILT_PROPERTY = "built"

BLESSED_PROPERTY = "blessed"
# Properties of an acceptance of data: the ids of what was accepted.
ACCEPTED_EXAMPLES = "examples_id"
ACCEPTED_STATISTICS = "statistics_id"
ACCEPTED_REPORT = "ingest_report_id"
# Pattern of the input that the spans belong to; empty without spans.
ACCEPTED_SPANS = "spans"
