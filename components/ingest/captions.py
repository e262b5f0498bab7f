"""The captions of a pair: from its files, its metadata and its columns, each once a language."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from sigline.components.ingest import cells, filters, reasons, remarks
from sigline.components.ingest.filters import Caption, FilterConfig
from sigline.components.ingest.readers.values import texts_of
from sigline.components.ingest.reasons import Refusal
from sigline.components.ingest.sources import FolderClass, RawPair
from sigline.schemas import record

# Maximum length of a caption: normalisation takes quadratic time in the worst case.
_MAX_CHARACTERS = 10_000
# Unicode categories without visible characters: controls, formats, surrogates, separators, and
# marks that combine with a letter.
_INVISIBLE_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Me"))
# Letters and symbols that are drawn as nothing: fillers of Hangul, the empty pattern of Braille,
# the musical null note head and the place of an object; and what Unicode sets aside for characters
# that are ignored, or never is one.
_INVISIBLE = re.compile(
    "[\u115f\u1160\u2065\u2800\u3164\uffa0\ufff0-\ufff8\ufffc\ufdd0-\ufdef\ufffe\uffff"
    "\U0001d159\U000e0000-\U000e0fff]"
)


def captions_of(
    pair: RawPair, metadata: Mapping[str, Any], config: FilterConfig, *, required: bool = True
) -> tuple[list[Caption], list[str]]:
    """Returns the captions with their languages, the columns' and the caption file's first.

    The metadata may hold `caption`, texts, and `captions`: texts, or texts by language. A
    caption that reads the same in several languages is there once for each of them, one after the
    other; one whose language is known is not there with an unknown one, too.

    Args:
        pair: The pair.
        metadata: Its metadata.
        config: How captions are cleaned.
        required: Whether there must be one.

    Returns:
        The captions, and `remarks` on what was left out.

    Raises:
        Refusal: If one cannot be read, or there is none and there must be one.
    """
    collected = _Captions(config)
    for text, language in pair.captions or ():
        collected.add(text, language)
    if pair.text is not None:
        text = decode_text(pair.text, "text")
        folder = pair.label.name if isinstance(pair.label, FolderClass) else None
        # A class folder named `none` or `NA` is the name of a class, not a missing value.
        collected.add(text, is_word=folder is not None and text == folder.replace("_", " "))
    for text in texts_of(metadata.get("caption")):
        collected.add(text)
    captions = metadata.get("captions")
    by_language = captions if isinstance(captions, dict) else {None: captions}
    for language, texts in by_language.items():
        for text in texts_of(texts):
            collected.add(text, language)
    return collected.result(required=required)


class _Captions:
    """Captions as they are collected, in order."""

    def __init__(self, config: FilterConfig):
        self._config = config
        # For each text, its language tags by their normalised form.
        self._languages: dict[str, dict[str, str]] = {}
        self._missing: list[str] = []
        self._empty = 0

    def add(self, text: Any, language: Any = None, *, is_word: bool = False) -> None:
        """Adds a caption, unless nothing of it is visible or it stands for none and is no word."""
        if isinstance(text, bytes):
            text = decode_text(text, "a caption")
        if cells.is_missing(text) and not is_word:
            self._missing += [text] if isinstance(text, str) else []
            return
        if not isinstance(text, str):
            detail = f"a caption must be a text, not {type(text).__name__}"
            raise Refusal(reasons.INVALID_METADATA, detail)
        if len(text) > _MAX_CHARACTERS:
            detail = f"a caption of {len(text)} characters, the limit is {_MAX_CHARACTERS}"
            raise Refusal(reasons.TEXT_TOO_LONG, detail)
        language = record.UNKNOWN_LANGUAGE if cells.is_missing(language) else str(language)
        check_unicode(text, "a caption")
        check_unicode(language, "a language")
        text = normalize_text(filters.clean(text, self._config))
        if not is_visible(text):
            self._empty += 1
            return
        known = self._languages.setdefault(text, {})
        known.setdefault(language.replace("_", "-").casefold(), language or record.UNKNOWN_LANGUAGE)

    def result(self, *, required: bool) -> tuple[list[Caption], list[str]]:
        """Returns the captions, and remarks on what was left out; see `captions_of`."""
        captions, notes = [], []
        for text, languages in self._languages.items():
            tags = [tag for tag in languages.values() if tag != record.UNKNOWN_LANGUAGE]
            captions += [Caption(text, tag) for tag in tags or [record.UNKNOWN_LANGUAGE]]
        if captions or not required:
            notes += [remarks.CAPTIONS_MISSING] * len(self._missing)
            return captions, notes + [remarks.CAPTIONS_EMPTY] * self._empty
        if self._empty:
            raise Refusal(reasons.EMPTY_TEXT, "nothing of any caption is visible")
        if self._missing:
            detail = f"the caption {self._missing[0].strip()!r} stands for a missing value"
            raise Refusal(reasons.MISSING_TEXT, detail)
        raise Refusal(reasons.MISSING_TEXT, "the sample has neither a caption file nor a caption")


def normalize_text(text: str) -> str:
    """Returns the NFC form without control characters, white space squeezed."""
    text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    return " ".join(text.split())


def is_visible(text: str) -> bool:
    """Whether a text has visible characters, not only zero-width ones or fillers."""
    return any(
        unicodedata.category(char) not in _INVISIBLE_CATEGORIES and not _INVISIBLE.match(char)
        for char in text
    )


def check_unicode(text: str, name: str) -> None:
    """Refuses lone surrogates, which JSON and file names may hold, but no UTF-8 text.

    Raises:
        Refusal: If there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal(reasons.INVALID_UTF8, f"{name} holds half of a surrogate pair") from None


def decode_text(data: bytes, name: str) -> str:
    """Returns the text of bytes in UTF-8, with or without a byte order mark.

    Raises:
        Refusal: If they are in another encoding.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"{name}: {error.reason} at byte {error.start}"
        raise Refusal(reasons.INVALID_UTF8, detail) from None
