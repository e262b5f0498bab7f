"""Remarks on what is left out of pairs that are written nevertheless, counted in `counts.json`.

The numbers count captions, labels or tags that were left out or repeated, not pairs.
"""

# A label that is not a known class is kept in the metadata.
LABELS_IN_META = "labels_in_meta"
# A label stands for a missing one, such as NaN or -1.
LABELS_MISSING = "labels_missing"
# A caption is a word for a missing value, such as `nan`.
CAPTIONS_MISSING = "captions_missing"
# A caption has no visible characters; the pair has other captions.
CAPTIONS_EMPTY = "captions_empty"
# A caption that is the same in several languages is stored once for each.
CAPTIONS_IN_FURTHER_LANGUAGES = "captions_in_further_languages"
# There is not one language tag per caption.
LANGUAGES_UNMATCHED = "languages_unmatched"
