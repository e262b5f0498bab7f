"""Texts of odd kinds, by which tokenizers tend to differ."""

ODD_TEXTS = {
    "empty": ("", "   ", "\t\n"),
    "white space": ("a  red\t\tdog", "a\xa0red\u3000dog", "\u2028a\u2029b\x0bc\x1cd\x85e"),
    "upper case": ("A RED DOG", "ÄÖÜ ẞ İ Ǆ"),
    "punctuation": ("a red, dog!? (x) it's #1 - [y]_{z}", "...", "don't we'll I'M 'S"),
    "emoji": ("🎉 🎉🎉 a", "👩‍👩‍👧 1️⃣ ©️"),
    "Chinese, Japanese, Korean": ("日本語 中文。", "각 각 ｶﾞ"),
    "right to left": ("שלום עולם", "كلب أحمر، ١٢"),
    "control and zero width": (
        "a\u200bred\u200d d\ufeffog\x00x\x01y\x7f\xad",
        "\u200e\ufffd\u2060",
    ),
    "very long": ("a red dog " * 200, "x" * 3000),
    "compatibility forms": ("ﬁ ① \uff21 ½ ™ ²", "e\u0301 o\u0308 \u212b"),
    "new lines": ("a\nred\r\ndog\n", "\n\n\n"),
    "leading space": ("  a red dog", " \u2581a"),
    "special tokens": (
        "</s> a <pad> b <unk> <s>",
        "<eos> <bos> <mask> <|endoftext|> <|startoftext|> x</w>",
    ),
    "digits": ("1234567890", "12 1,000 3.14 ٣"),
}
