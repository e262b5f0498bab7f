"""Rules that leave captions and pairs out, each with a reason of its own and off by default.

A caption that a rule refuses is left out; the pair is rejected if none is left, with the reason of
its first caption. DataComp's basic filter (arXiv 2304.14108) is a setting of these; see
`docs/data.md`.
"""

import functools
import html
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sigline.components.ingest import reasons
from sigline.components.ingest.fingerprints import View
from sigline.components.ingest.reasons import Refusal
from sigline.schemas import record

# Captions that are only a file name, as cameras and uploads give them.
_FILE_NAME = re.compile(
    r"(?:\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|avif|heic|svg|pdf)"
    r"|(?:img|dsc[nf]?|dscf?|pict?|image|photo|screenshot|untitled|scan|mvi|wp|pxl)"
    r"[\s_()-]*[\d][\d\s_()-]*)",
    re.IGNORECASE,
)
# Phrases that web pages attach to any picture.
BOILERPLATE = (
    r"(?:click|tap) (?:here )?(?:to|for) (?:enlarge|zoom|view|see)\b.*",
    r"(?:image|photo|picture|thumbnail|video) (?:not available|unavailable|coming soon)",
    r"no (?:image|photo|picture)(?: available)?",
    r"(?:image|photo|picture|stock photo|file photo|placeholder|thumbnail|logo|banner|avatar)",
    r"(?:all rights reserved|copyright)\b.*",
    r"(?:related|similar) (?:posts?|products?|images?)",
    r"(?:pin|share|tweet) (?:it|this|on \w+)",
    r"https?://\S+(?:\s+https?://\S+)*",
)
_TAG = re.compile(r"<[^<>]{0,200}>")
# Zero-width characters and soft hyphens, which are invisible but change tokens.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")


@dataclass(frozen=True)
class FilterConfig:
    """Which captions and pairs are left out.

    Attributes:
        clean_text: Whether entities and tags of HTML and invisible characters are taken out of
            captions.
        min_words: Least number of words, as white space parts them.
        min_chars: Least number of characters.
        languages: Codes of the languages that are kept; any if empty. Where the source does not
            name a caption's language it is identified.
        language_confidence: Least probability at which an identified language counts; below it a
            caption stays, and its language unknown.
        file_names: Whether captions that are names of files are left out.
        boilerplate: Whether captions that are `BOILERPLATE` are left out.
        patterns: Regular expressions; captions that one matches whole are left out.
        max_repeats: A caption of more pairs than this is left out everywhere.
        vocabulary: SentencePiece model for `max_tokens`.
        max_tokens: Most tokens of a caption, as the vocabulary has them.
        min_deviation: Least standard deviation of a picture's values, 0 to 127, scaled to 16 x 16:
            pictures of one colour have 0, and so have fine textures.
        scores: Bounds by names of metadata columns: `{"punsafe": {"max": 0.5}}`. A pair without the
            column, or whose value is no number, is left out.
        scorers: Functions, `module:function`, that add columns; each takes the stored image's
            bytes, the captions and the metadata, and returns numbers by name.
    """

    clean_text: bool = False
    min_words: int = 0
    min_chars: int = 0
    languages: tuple[str, ...] = ()
    language_confidence: float = 0.5
    file_names: bool = False
    boilerplate: bool = False
    patterns: tuple[str, ...] = ()
    max_repeats: int | None = None
    vocabulary: str = ""
    max_tokens: int | None = None
    min_deviation: float = 0.0
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scorers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("min_words", "min_chars", "max_tokens", "max_repeats", "min_deviation"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int | float):
                raise ValueError(f"filters.{name} must be a number. Received: {value!r}")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"filters.patterns must be regular expressions. Received: {pattern!r}: {error}"
                ) from None
        for name, bounds in self.scores.items():
            known = isinstance(bounds, Mapping) and set(bounds) <= {"min", "max"} and bounds
            if not known or not all(isinstance(x, int | float) for x in bounds.values()):
                raise ValueError(
                    "filters.scores must give min, max or both for each column. "
                    f"Received: {name}: {bounds!r}"
                )
        if (self.max_tokens is None) != (not self.vocabulary):
            raise ValueError(
                "filters.max_tokens and filters.vocabulary must be given together. "
                f"Received: {self.max_tokens}, {self.vocabulary!r}"
            )
        if self.max_repeats is not None and self.max_repeats < 1:
            raise ValueError(
                f"filters.max_repeats must be at least 1. Received: {self.max_repeats}"
            )
        for name in self.scorers:
            _function(name)


class Caption(NamedTuple):
    """A caption and its language."""

    text: str
    language: str


def clean(text: str, config: FilterConfig) -> str:
    """Returns a text without HTML and invisible characters, if that is asked for."""
    if not config.clean_text:
        return text
    return _INVISIBLE.sub("", _TAG.sub(" ", html.unescape(text)))


def kept_captions(captions: Sequence[Caption], config: FilterConfig) -> list[Caption]:
    """Returns the captions that no rule leaves out, with languages where they are identified.

    Raises:
        Refusal: If there are captions and none is left.
    """
    kept, refusals = [], []
    for caption in captions:
        try:
            kept.append(_checked(caption, config))
        except Refusal as refusal:
            refusals.append(refusal)
    if refusals and not kept:
        raise refusals[0]
    return kept


def _checked(caption: Caption, config: FilterConfig) -> Caption:
    text, language = caption
    words = len(text.split())
    if words < config.min_words or len(text) < config.min_chars:
        raise Refusal(
            reasons.TEXT_TOO_SHORT,
            f"{words} words and {len(text)} characters, the least are {config.min_words} and "
            f"{config.min_chars}",
        )
    if config.file_names and _FILE_NAME.fullmatch(text):
        raise Refusal(reasons.FILE_NAME_TEXT, f"the caption is a file's name: {text[:100]!r}")
    for pattern in _patterns(config.boilerplate, config.patterns):
        if pattern.fullmatch(text):
            raise Refusal(reasons.BOILERPLATE_TEXT, f"{text[:100]!r} matches {pattern.pattern!r}")
    if config.languages:
        language = _language(text, language, config)
    if config.max_tokens is not None:
        tokens = len(_vocabulary(config.vocabulary).encode(text))
        if tokens > config.max_tokens:
            raise Refusal(
                reasons.TOO_MANY_TOKENS, f"{tokens} tokens, the limit is {config.max_tokens}"
            )
    return Caption(text, language)


def _language(text: str, language: str, config: FilterConfig) -> str:
    confidence = 1.0
    if language == record.UNKNOWN_LANGUAGE:
        language, confidence = _identifier().classify(text)
        if confidence < config.language_confidence:
            return record.UNKNOWN_LANGUAGE
    known = [code.lower() for code in config.languages]
    if re.split("[-_]", language)[0].lower() not in known:
        raise Refusal(
            reasons.OTHER_LANGUAGE,
            f"{text[:100]!r} is {language} (probability {confidence:.2f}), kept are "
            f"{', '.join(config.languages)}",
        )
    return language


def check_picture(plain: View, config: FilterConfig) -> None:
    """Refuses a picture of one colour.

    Raises:
        Refusal: If its values deviate less than they must.
    """
    deviation = float(np.frombuffer(plain.thumbnail, np.uint8).reshape(-1, 3).std(axis=0).max())
    if deviation < config.min_deviation:
        raise Refusal(
            reasons.BLANK_IMAGE,
            f"a standard deviation of {deviation:.2f}, the least is {config.min_deviation}",
        )


def scored(
    image: bytes, texts: Sequence[str], metadata: Mapping[str, Any], config: FilterConfig
) -> dict[str, Any]:
    """Returns the metadata with the columns of the scorers.

    Raises:
        Refusal: If a scorer fails or a score lies outside of its bounds.
    """
    columns = dict(metadata)
    for name in config.scorers:
        try:
            scores = _function(name)(image, texts, columns)
            columns |= {key: float(value) for key, value in scores.items()}
        except Exception as error:  # A user's scorer may raise anything.
            raise Refusal(
                reasons.SCORER_FAILED, f"{name}: {type(error).__name__}: {str(error)[:200]}"
            ) from error
    for name, bounds in config.scores.items():
        value = _number(columns.get(name))
        low, high = bounds.get("min", -np.inf), bounds.get("max", np.inf)
        if value is None or not low <= value <= high:
            raise Refusal(
                reasons.SCORE_OUT_OF_RANGE,
                f"{name} is {repr(columns.get(name))[:100]}, and must be from {low} to {high}",
            )
    return columns


def _number(value: Any) -> float | None:
    # CSV and similar tables hold numbers as text.
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def caption_key(text: str) -> str:
    """Returns what captions share that are repeats of each other."""
    return " ".join(text.casefold().split())


@functools.cache
def _patterns(boilerplate: bool, patterns: tuple[str, ...]) -> list[re.Pattern]:
    expressions = (*(BOILERPLATE if boilerplate else ()), *patterns)
    return [re.compile(pattern, re.IGNORECASE) for pattern in expressions]


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.cache
def _vocabulary(path: str) -> Any:
    import sentencepiece

    with open(path, "rb") as handle:
        return sentencepiece.SentencePieceProcessor(model_proto=handle.read())


@functools.cache
def _function(name: str) -> Callable[..., Mapping[str, float]]:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"filters.scorers must name functions as module:function. Received: {name!r}: {error}"
        ) from None
    return function
