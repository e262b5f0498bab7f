"""The closed set of reasons why a pair is rejected."""

UNSUPPORTED_IMAGE = "unsupported_image"
CORRUPT_IMAGE = "corrupt_image"
TOO_MANY_PIXELS = "too_many_pixels"
TOO_MANY_BYTES = "too_many_bytes"
TOO_SMALL = "too_small"
EXTREME_ASPECT = "extreme_aspect"
MISSING_IMAGE = "missing_image"
UNSAFE_PATH = "unsafe_path"
MISSING_TEXT = "missing_text"
EMPTY_TEXT = "empty_text"
TEXT_TOO_LONG = "text_too_long"
INVALID_UTF8 = "invalid_utf8"
INVALID_METADATA = "invalid_metadata"
INVALID_ROW = "invalid_row"
DAMAGED_ARCHIVE = "damaged_archive"

ALL = (
    UNSUPPORTED_IMAGE,
    CORRUPT_IMAGE,
    TOO_MANY_PIXELS,
    TOO_MANY_BYTES,
    TOO_SMALL,
    EXTREME_ASPECT,
    MISSING_IMAGE,
    UNSAFE_PATH,
    MISSING_TEXT,
    EMPTY_TEXT,
    TEXT_TOO_LONG,
    INVALID_UTF8,
    INVALID_METADATA,
    INVALID_ROW,
    DAMAGED_ARCHIVE,
)
