"""The closed sets of reasons: why a pair is rejected, and why a thing is passed over unread."""

from sigline.schemas import entries

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
TEXT_TOO_SHORT = "text_too_short"
OTHER_LANGUAGE = "other_language"
FILE_NAME_TEXT = "file_name_text"
BOILERPLATE_TEXT = "boilerplate_text"
REPEATED_TEXT = "repeated_text"
TOO_MANY_TOKENS = "too_many_tokens"
BLANK_IMAGE = "blank_image"
SCORE_OUT_OF_RANGE = "score_out_of_range"
SCORER_FAILED = "scorer_failed"
DUPLICATE = "duplicate"
LEAK = "leak"

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
    TEXT_TOO_SHORT,
    OTHER_LANGUAGE,
    FILE_NAME_TEXT,
    BOILERPLATE_TEXT,
    REPEATED_TEXT,
    TOO_MANY_TOKENS,
    BLANK_IMAGE,
    SCORE_OUT_OF_RANGE,
    SCORER_FAILED,
    DUPLICATE,
    LEAK,
)

# Reasons for passing over a file, a link or an archive member. Those passed over for one of these
# hold no pairs, or are read elsewhere:
HIDDEN = "hidden"
DOCUMENT = "document"
COMPANION = "companion"
CACHE = "cache"
OLDER_VERSION = "older_version"
EXTRA_MEMBER = "extra_member"
FOLDER = entries.FOLDER
EMPTY_FOLDER = entries.EMPTY_FOLDER
LINK_CYCLE = entries.LINK_CYCLE
LINKED_TWICE = entries.LINKED_TWICE
# Those passed over for one of these may hold pairs, or should have led to some:
UNKNOWN_FORMAT = "unknown_format"
OTHER_FORMAT = "other_format"
UNLISTED = "unlisted"
UNNAMED_IMAGE = "unnamed_image"
METADATA_ALONE = "metadata_alone"
BROKEN_LINK = entries.BROKEN_LINK
UNSAFE_LINK = "unsafe_link"
SPECIAL_FILE = entries.SPECIAL_FILE
UNREADABLE_FOLDER = entries.UNREADABLE_FOLDER
TRAILING_BYTES = "trailing_bytes"

# Reasons that no limit of the data gate counts.
EXPECTED = (
    HIDDEN,
    DOCUMENT,
    COMPANION,
    CACHE,
    OLDER_VERSION,
    EXTRA_MEMBER,
    FOLDER,
    EMPTY_FOLDER,
    LINK_CYCLE,
    LINKED_TWICE,
)
PASSED_OVER = (
    *EXPECTED,
    UNKNOWN_FORMAT,
    OTHER_FORMAT,
    UNLISTED,
    UNNAMED_IMAGE,
    METADATA_ALONE,
    BROKEN_LINK,
    UNSAFE_LINK,
    SPECIAL_FILE,
    UNREADABLE_FOLDER,
    TRAILING_BYTES,
)


class Refusal(Exception):
    """A pair that a rule leaves out.

    Attributes:
        reason: One of this module's.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
