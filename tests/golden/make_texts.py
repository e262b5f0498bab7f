"""Texts whose tokens are compared."""

TEXTS = (
    "a red ring",
    "A Large, BLUE ring!",
    "two  rings\tleft of a small green square and a large red ring and a small blue square",
    "Ünïcode ring…",
    "",
)

# For byte pairs: words, numbers, endings and letters that are split otherwise.
BYTE_PAIR_TEXTS = (
    *TEXTS,
    "it's 12 o'clock, isn't it?! We'll see 3.14",
    "nai\u0308ve caf\u00e9\u00a0\u65e5\u672c\u8a9e \U0001f389\U0001f389 \u00c4\u00d6",
    "aaaaaaa aa aaa banana bananas",
    "ring's rings' 'ring' \t new\nline \u2028 end",
    "large " * 30,
)
