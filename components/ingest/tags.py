"""What captions name: tags, as Tag2Text (arXiv 2303.05657) takes them from captions.

Either a list says which tags there are and which words stand for them, or the tags are the content
words of English captions, in their base form, that are frequent.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sigline.schemas import record

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
# Base forms of function words, which carry grammar instead of naming things.
_FUNCTION_WORDS_TEXT = """
    a about above across after again against all almost along already also although always among
    an and another any anybody anyone anything around as at away back be because become before
    behind below beneath beside besides between beyond both but by can cannot could despite do
    down during each either else enough etc even ever every everyone everything except few for
    from further get give go have he hence her here hers herself him himself his how however i
    if in indeed instead into it its itself just keep last least less let like little lot make
    many may maybe me mere might mine more moreover most much must my myself near nearly need
    neither never next no nobody none nor not nothing now of off often on once one oneself only
    onto or other otherwise ought our ours ourselves out over own per perhaps put quite rather
    really same seem several shall she should since so some somebody someone something sometimes
    still such take than that the their theirs them themselves then there therefore these they
    thing this those though three through throughout thus to together too toward towards two
    under unless until up upon us use very via we well what whatever when where whether which
    while who whom whose why will with within without would yes yet you your yours yourself
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())
_ENGLISH = ("en", record.UNKNOWN_LANGUAGE)


@dataclass(frozen=True)
class TagConfig:
    """Which tags records get; none by default.

    Attributes:
        entries: File with a tag in each line, and behind tabs the words that stand for it too.
        most: Parse tags from captions instead, and keep so many, those of the most pairs.
        min_count: Least number of training pairs that a parsed tag is found in.
    """

    entries: str = ""
    most: int | None = None
    min_count: int = 5

    def __post_init__(self) -> None:
        if self.entries and self.most is not None:
            raise ValueError(
                "tags.entries and tags.most exclude each other. Received: "
                f"tags.entries={self.entries!r}, tags.most={self.most}"
            )
        for name in ("most", "min_count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"tags.{name} must be at least 1. Received: tags.{name}={value}")

    @property
    def is_enabled(self) -> bool:
        """Whether records get tags."""
        return bool(self.entries) or self.most is not None


def parsed(texts: Iterable[str], languages: Iterable[str]) -> tuple[str, ...]:
    """Returns the content words of captions in their base form, sorted, of each one.

    Args:
        texts: The captions.
        languages: Their languages; those in other languages than English give none.
    """
    content_words = set()
    for text, language in zip(texts, languages, strict=True):
        if language.split("-")[0].lower() in _ENGLISH:
            content_words.update(word for word in _base_forms(text) if len(word) > 1)
    return tuple(sorted(content_words - _FUNCTION_WORDS))


class TagList:
    """A list of tags, with the words that stand for them."""

    def __init__(self, lines: Iterable[str]):
        """Takes lines: a tag, and behind tabs what stands for it too.

        Raises:
            ValueError: If there is no tag.
        """
        self._tags: dict[tuple[str, ...], str] = {}
        lines = list(lines)
        for line in lines:
            tag, *others = (part.strip() for part in line.split("\t"))
            for name in (tag, *others):
                words = tuple(_base_forms(name))
                if tag and words:
                    self._tags.setdefault(words, tag)
        if not self._tags:
            raise ValueError(
                "tags.entries must name a file with a tag in each line. Received: "
                f"{len(lines)} lines without one"
            )
        self._lengths = sorted({len(words) for words in self._tags})

    def matched(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Returns the tags whose words follow each other in one of the texts, sorted."""
        matches = set()
        for text in texts:
            words = tuple(_base_forms(text))
            for length in self._lengths:
                for start in range(len(words) - length + 1):
                    tag = self._tags.get(words[start : start + length])
                    if tag is not None:
                        matches.add(tag)
        return tuple(sorted(matches))


def _base_forms(text: str) -> Iterator[str]:
    for word in _WORD.findall(text):
        yield _base_form(word.casefold().replace("\u2019", "'"))


@functools.lru_cache(maxsize=100_000)
def _base_form(word: str) -> str:
    # Imported here, so that its dictionary is loaded only where words are parsed.
    import simplemma

    return simplemma.lemmatize(word.removesuffix("'s"), lang="en").casefold()
