"""Trains a SentencePiece vocabulary with the ids that SigLIP's padding expects."""

import heapq
import io
from collections.abc import Iterable
from hashlib import sha256

import sentencepiece

# More captions do not improve a vocabulary; a sample of this size is deterministic.
MAX_CAPTIONS = 1_000_000


def train_vocabulary(
    captions: Iterable[str], *, vocabulary_size: int, max_captions: int = MAX_CAPTIONS
) -> bytes:
    """Returns a serialized unigram model: padding 0, end of text 1, unknown 2.

    Args:
        captions: Texts as they reach the tokenizer, that is, canonicalised.
        vocabulary_size: Largest number of pieces; small data yields fewer.
        max_captions: Texts that are used; where there are more, a sample that depends on nothing
            but the texts.

    Raises:
        ValueError: If there is no text, or the size does not hold the characters of the texts.
    """
    sample = _sample(captions, max_captions)
    if not any(sample):
        raise ValueError(
            "captions must hold at least one text that is not empty; a model of images alone needs "
            f"no vocabulary. Received: {len(sample)} captions, all of them empty"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocabulary_size,
            hard_vocab_limit=False,
            character_coverage=0.9995,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            # With several threads sums are added in varying order.
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            "vocabulary_size is too small for the characters in the captions, or the captions are "
            f"unusable. Received: vocabulary_size={vocabulary_size}; SentencePiece says: {error}"
        ) from error
    return model.getvalue()


def _sample(captions: Iterable[str], limit: int) -> list[str]:
    """Returns the `limit` texts with the smallest hashes, in the order of the hashes."""
    keyed = ((sha256(text.encode()).digest(), text) for text in captions)
    return [text for _, text in heapq.nsmallest(limit, keyed)]
