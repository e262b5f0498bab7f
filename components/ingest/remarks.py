"""What is left out of pairs that are written all the same; `counts.json` has the numbers.

A number is of what was left out or said twice: captions, labels or tags, not pairs.
"""

# Labels that are no class: they are kept in the metadata.
LABELS_IN_META = "labels_in_meta"
# Labels that stand for none, such as NaN and -1.
LABELS_MISSING = "labels_missing"
# Captions that are words for a missing value, such as `nan`.
CAPTIONS_MISSING = "captions_missing"
# Captions of which nothing is visible, beside others.
CAPTIONS_EMPTY = "captions_empty"
# Further languages of captions that read the same in several: the caption is there once for each.
CAPTIONS_IN_FURTHER_LANGUAGES = "captions_in_further_languages"
# Tags of languages that are not as many as the captions.
LANGUAGES_UNMATCHED = "languages_unmatched"
