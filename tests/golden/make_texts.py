"""Texts whose tokens are compared."""

TEXTS = (
    "a red ring",
    "A Large, BLUE ring!",
    "two  rings\tleft of a small green square and a large red ring and a small blue square",
    "Ünïcode ring…",
    "",
)
