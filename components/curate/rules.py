"""The rules by which pairs are chosen: pure functions of scores, captions and keys.

Every choice is a function of the pairs, the configuration and the seed: neither the number of
workers nor the order of pairs matters, and coins are hashes of keys.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_WORD = re.compile(r"\w+")
# Scores are compared as 32-bit integers. Two histograms, over the upper bits and over the next
# bits, find the score to cut at.
UPPER_BITS, NEXT_BITS = 16, 12
LAST_BITS = 32 - UPPER_BITS - NEXT_BITS


class Embedded(NamedTuple):
    """The embeddings of a pair.

    Attributes:
        similarity: The cosine of image and captions, averaged over the captions; 0 where they were
            not embedded.
        image: The image's embedding, `(dim,)`; None where nothing was embedded.
        text: The mean direction of the captions' embeddings, likewise; None without captions.
    """

    similarity: float = 0.0
    image: np.ndarray | None = None
    text: np.ndarray | None = None


class Candidate(NamedTuple):
    """A pair that may be chosen, without its picture.

    Attributes:
        shard: Name of the shard that it stands in.
        position: Where it stands there.
        key: Its key.
        texts: Its captions; none of an image without any.
    """

    shard: str
    position: int
    key: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class CurateConfig:
    """Which pairs are chosen: in the order of the attributes but that balance comes last.

    Attributes:
        similarity_fraction: Share of the pairs, those with the most similar image and captions.
        min_similarity: Least similarity instead, the cosine averaged over a pair's captions.
        target_limit: How many pairs to choose whose images are near those of a target, at most
            (SimCore, arXiv 2303.11101).
        target_stop: End sooner where a round's similarity falls below this share of the first's.
        target_clusters: Centres of the target's images, found by k-means.
        covariance_fraction: Share of each latent class that keeps how images and captions vary
            together (ClipCov, arXiv 2403.12267).
        entry_limit: The t of MetaCLIP (arXiv 2309.16671, section 3.3): about so many pairs are kept
            for each entry that more pairs match; pairs that match none are left out.
        clusters: Number of clusters of image embeddings, found by k-means.
        cluster_limit: About so many pairs are kept of each cluster that has more.
        cluster_rounds: Rounds of k-means.
        seed: Seed of all random choices and of the first centres.
    """

    similarity_fraction: float | None = None
    min_similarity: float | None = None
    target_limit: int | None = None
    target_stop: float = 0.95
    target_clusters: int = 100
    covariance_fraction: float | None = None
    entry_limit: int | None = None
    clusters: int | None = None
    cluster_limit: int | None = None
    cluster_rounds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("similarity_fraction", "covariance_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1. Received: {name}={value}")
        if not 0 <= self.target_stop <= 1:
            raise ValueError(
                f"target_stop must be 0 to 1. Received: target_stop={self.target_stop}"
            )
        if self.similarity_fraction is not None and self.min_similarity is not None:
            raise ValueError(
                "similarity_fraction and min_similarity exclude each other. Received: "
                f"{self.similarity_fraction}, {self.min_similarity}"
            )
        if (self.clusters is None) != (self.cluster_limit is None):
            raise ValueError(
                "clusters and cluster_limit must be given together. "
                f"Received: clusters={self.clusters}, cluster_limit={self.cluster_limit}"
            )
        for name in (
            "entry_limit",
            "clusters",
            "cluster_limit",
            "cluster_rounds",
            "target_limit",
            "target_clusters",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {name}={value}")

    @property
    def of_captions(self) -> tuple[str, ...]:
        """The options in use that choose by captions, which a pair must have then."""
        names = ("similarity_fraction", "min_similarity", "covariance_fraction", "entry_limit")
        return tuple(name for name in names if getattr(self, name) is not None)

    @property
    def embeds_texts(self) -> bool:
        """Whether captions have to be embedded."""
        return bool(set(self.of_captions) - {"entry_limit"})

    @property
    def embeds(self) -> bool:
        """Whether pairs have to be embedded."""
        return any(
            value is not None
            for value in (
                self.similarity_fraction,
                self.min_similarity,
                self.target_limit,
                self.covariance_fraction,
                self.clusters,
            )
        )


def check_captions(counts: Mapping[bool, int], options: str) -> int:
    """Returns how many pairs have no caption and are left out for it.

    Args:
        counts: How many pairs have captions, and how many do not.
        options: What chooses by captions, for the message.

    Raises:
        ValueError: If none has one.
    """
    captionless = counts.get(False, 0)
    if captionless and not counts.get(True):
        raise ValueError(
            f"{options} must choose among records with captions. "
            f"Received: {captionless} records, all without captions"
        )
    return captionless


def ordered(score: float) -> int:
    """Returns an unsigned 32-bit integer; those of larger scores, as float32, are larger.

    NaN comes before all numbers.
    """
    value = np.float32(score)
    if np.isnan(value):
        return 0
    # Adding 0 turns -0.0 into 0.0, which has other bits though it compares equal.
    bits = int((value + np.float32(0)).view(np.uint32))
    return bits ^ (0xFFFFFFFF if bits >> 31 else 0x80000000)


def cut(counts: Mapping[int, int], size: int) -> tuple[int, int]:
    """Returns the bin that the `size` largest end in, and how many of that bin are among them.

    Args:
        counts: How many there are in each bin.
        size: How many to select, at most as many as there are.
    """
    for place in sorted(counts, reverse=True):
        if size <= counts[place]:
            return place, size
        size -= counts[place]
    return -1, 0


def coin(seed: int, *names: str) -> float:
    """Returns a number in [0, 1) that looks random and is the same for the same names."""
    digest = hashlib.sha256(b"%d" % seed)
    for name in names:
        digest.update(b"\0" + name.encode("utf-8", "surrogateescape"))
    return int.from_bytes(digest.digest()[:8], "big") / 2**64


def words(text: str) -> tuple[str, ...]:
    """Returns the words of a text, without case and punctuation."""
    return tuple(_WORD.findall(text.casefold()))


class Entries:
    """The entries that captions are matched with, each a few words."""

    def __init__(self, entries: Iterable[str]):
        """Takes the entries; those without a word are left out.

        Raises:
            ValueError: If none is left.
        """
        lines = list(entries)
        self._entries = {words(entry) for entry in lines} - {()}
        if not self._entries:
            raise ValueError(
                "There are no entries to match captions with. Received: "
                f"{len(lines)} lines, none of which holds a word"
            )
        self._lengths = sorted({len(entry) for entry in self._entries})

    def matched(self, texts: Iterable[str]) -> list[str]:
        """Returns the entries whose words follow each other in one of the texts, sorted."""
        matches = set()
        for text in texts:
            caption = words(text)
            for length in self._lengths:
                for start in range(len(caption) - length + 1):
                    entry = caption[start : start + length]
                    if entry in self._entries:
                        matches.add(" ".join(entry))
        return sorted(matches)


def kept_by_entries(
    key: str, matched: Sequence[str], counts: Mapping[str, int], limit: int, seed: int
) -> bool:
    """Whether a pair is kept by one of the entries that it matches.

    Each entry keeps a pair with probability `limit / max(count, limit)`, so that of rare entries
    all are kept.
    """
    return any(
        coin(seed, "entry", entry, key) < limit / max(counts[entry], limit) for entry in matched
    )


def chunk_of(key: str, chunks: int) -> int:
    """Returns the part of a group that is too large for one worker that a pair is in."""
    return int(coin(0, "chunk", key) * chunks)


def kept_of_cluster(key: str, count: int, limit: int, seed: int) -> bool:
    """Whether a pair of a cluster with so many pairs is kept."""
    return coin(seed, "cluster", key) < limit / max(count, limit)


def nearest(vector: np.ndarray, centres: np.ndarray) -> int:
    """Returns the place of the centre with the largest inner product with a vector.

    Args:
        vector: `(dim,)`.
        centres: `(clusters, dim)`, of unit length.

    Returns:
        If several are equally near, the first.
    """
    return int(np.argmax(centres @ vector.astype(np.float64)))


# Embeddings are summed as fixed-point integers: unlike floats, the sum does not depend on their
# order. 64 bits hold the sum of eight billion unit vectors.
FIXED_POINT = 2**30


def fixed_point(vector: np.ndarray) -> np.ndarray:
    """Returns a vector of at most unit length as int64."""
    return np.round(vector.astype(np.float64) * FIXED_POINT).astype(np.int64)


def centre(total: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Returns the direction of a sum of fixed-point vectors; another vector if it has none."""
    value = total.astype(np.float64)
    length = np.linalg.norm(value)
    return value / length if length else otherwise


def first_centres(sample: Sequence[tuple[str, np.ndarray]], clusters: int, seed: int) -> np.ndarray:
    """Returns the centres to begin with, by k-means++ on a sample (Arthur, Vassilvitskii 2007).

    Args:
        sample: Keys and embeddings, of unit length.
        clusters: How many centres.
        seed: Seed of the draws.

    Returns:
        `(clusters, dim)`, float64.

    Raises:
        ValueError: If the sample is smaller than that.
    """
    if len(sample) < clusters:
        raise ValueError(
            "clusters must be at most the number of pairs. "
            f"Received: clusters={clusters}, pairs={len(sample)}"
        )
    vectors = np.stack([vector for _, vector in sorted(sample, key=lambda item: item[0])])
    vectors = vectors.astype(np.float64)
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(len(vectors)))]
    distance = np.full(len(vectors), np.inf)
    while len(chosen) < clusters:
        distance = np.minimum(distance, np.maximum(0, 2 - 2 * vectors @ vectors[chosen[-1]]))
        distance[chosen] = 0
        total = distance.sum()
        weights = distance / total if total else None
        if weights is None:
            # All remaining vectors equal a centre, so any of them will do.
            rest = np.setdiff1d(np.arange(len(vectors)), chosen)
            chosen.append(int(rng.choice(rest)))
        else:
            chosen.append(int(rng.choice(len(vectors), p=weights)))
    return vectors[chosen]
