"""Vocabularies inside the graph: SentencePiece models, and the byte pairs of CLIP.

Both are made of operations that the stock TF Serving binary links.
"""

import json
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

# Suffix of a piece at the end of a word, in CLIP's vocabulary.
END_OF_WORD = "</w>"
# CLIP's words: some endings of English, letters, single digits, anything else.
_WORDS = r"('s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+)"
_WHITE_SPACE = r"[\s\p{Z}\x{85}\x{0b}\x{1c}-\x{1f}]+"
# Bytes of a word and characters of a text that are read. A merge takes one step of a loop, so an
# endless word would cost time without bound, while a text has 75 pieces at most.
_LONGEST_WORD = 512
_LONGEST_TEXT = 16_384
_NO_RANK = np.iinfo(np.int32).max


def load(vocabulary: bytes) -> "SentencePieces | BytePairs":
    """Returns a vocabulary: byte pairs, which are JSON, or a serialized SentencePiece model."""
    return BytePairs(vocabulary) if vocabulary.startswith(b"{") else SentencePieces(vocabulary)


class SentencePieces(tf.Module):
    """A SentencePiece model.

    Attributes:
        size: Number of pieces.
    """

    def __init__(self, vocabulary: bytes):
        """Loads a serialized model."""
        super().__init__()
        self.sentencepiece = tf_text.SentencepieceTokenizer(
            model=vocabulary,
            out_type=tf.int32,  # pyright: ignore[reportArgumentType]  # Its stub names another DType.
        )
        self.size = int(tf.convert_to_tensor(self.sentencepiece.vocab_size()))

    def id_of(self, piece: str) -> int | None:
        """Returns the number of a piece; None if it is not there."""
        number: Any = self.sentencepiece.string_to_id(piece)
        return int(number) if self.sentencepiece.id_to_string(number) == piece.encode() else None

    def tokenize(self, texts: tf.Tensor, length: int) -> tf.RaggedTensor:
        """Returns the first pieces of texts `(batch,)`, ragged `(batch, pieces)`, int32."""
        pieces: Any = self.sentencepiece.tokenize(texts)
        return pieces[:, :length]

    def text_of(self, ids: list[int]) -> str:
        """Returns what pieces spell."""
        text: Any = self.sentencepiece.detokenize(tf.constant(ids, tf.int32))
        return text.numpy().decode(errors="replace")


class BytePairs(tf.Module):
    """CLIP's byte pairs (arXiv 2103.00020, section 2.4; 1508.07909).

    The bytes of each word are merged pair by pair, the earliest pair of the list first, from the
    left. Since pairs are looked up by binary search in plain arrays, there is no table to restore.

    Attributes:
        size: Number of pieces.
    """

    def __init__(self, vocabulary: bytes):
        """Reads what `serialized` wrote.

        Raises:
            ValueError: If it is something else.
        """
        super().__init__()
        content = json.loads(vocabulary)
        if set(content) != {"pieces", "merges"}:
            raise ValueError(
                "A vocabulary in JSON must have pieces and merges. "
                f"Received: {', '.join(sorted(content)[:5])}"
            )
        self._pieces: list[str] = content["pieces"]
        self.size = len(self._pieces)
        self._ids = {piece: number for number, piece in enumerate(self._pieces)}
        symbols = _symbols_of_bytes()
        try:
            # A byte at the end of a word begins as another piece than the same byte inside of it.
            self._inner = np.array([self._ids[x] for x in symbols], np.int32)
            self._last = np.array([self._ids[x + END_OF_WORD] for x in symbols], np.int32)
            pairs = np.array([[self._ids[x] for x in pair] for pair in content["merges"]], np.int64)
            merged = [self._ids[left + right] for left, right in content["merges"]]
        except KeyError as error:
            raise ValueError(
                f"The byte pairs must have the piece {error}. "
                f"Received: {self.size} pieces without it"
            ) from error
        # A pair of ids becomes one number, left * size + right, which int64 holds. The keys are
        # sorted for a binary search; `order` leads from a key back to its rank, its place among the
        # merges.
        keys = pairs.reshape(-1, 2) @ np.array([self.size, 1])
        order = np.argsort(keys)
        self._keys, self._ranks = keys[order], order.astype(np.int32)
        self._merged = np.array(merged, np.int32)

    def id_of(self, piece: str) -> int | None:
        """Returns the number of a piece; None if it is not there."""
        return self._ids.get(piece)

    def tokenize(self, texts: tf.Tensor, length: int) -> tf.RaggedTensor:
        """Returns the first pieces of texts `(batch,)`, ragged `(batch, pieces)`, int32."""
        texts = tf.strings.substr(texts, 0, _LONGEST_TEXT, unit="UTF8_CHAR")
        normalized: Any = tf_text.normalize_utf8(texts, "NFC")
        texts = tf.strings.regex_replace(normalized, _WHITE_SPACE, " ")
        words: Any = tf.strings.split(tf.strings.regex_replace(texts, _WORDS, r"\1 "))
        # Every word has at least one piece, so that words behind the first `length` give none of
        # the pieces that are returned. Without them the matrix below stays small.
        words = words[:, :length]
        split: Any = tf.strings.bytes_split(tf.strings.substr(words.values, 0, _LONGEST_WORD))
        values = tf.reshape(tf.io.decode_raw(split.values, tf.uint8), [-1])
        values = split.with_values(tf.cast(values, tf.int32)).to_tensor(default_value=0)
        lengths = tf.cast(split.row_lengths(), tf.int32)[:, tf.newaxis]
        places = tf.range(tf.shape(values)[1])[tf.newaxis]
        rows: Any = tf.where(
            places == lengths - 1, tf.gather(self._last, values), tf.gather(self._inner, values)
        )
        # All words of the batch are merged at once, a word in each row, filled up by -1.
        rows = self._merge(tf.where(places < lengths, rows, -1))
        pieces: Any = tf.ragged.boolean_mask(rows, rows >= 0)
        return words.with_values(pieces).merge_dims(1, 2)[:, :length]

    def _merge(self, rows: tf.Tensor) -> tf.Tensor:
        """Merges the best pair of each row until there is none; behind its end a row holds -1."""
        places = tf.range(tf.shape(rows)[1])[tf.newaxis]

        def best(rows):
            ranks = self._pair_ranks(rows[:, :-1], rows[:, 1:])
            return ranks, tf.reduce_min(ranks, axis=1)

        def step(rows):
            ranks, lowest = best(rows)
            has_pair = (lowest < _NO_RANK)[:, tf.newaxis]
            # `argmin` returns the first of equal ranks: equal pairs merge from the left, one in
            # each step.
            place = tf.argmin(ranks, axis=1, output_type=tf.int32)[:, tf.newaxis]
            behind = tf.pad(rows, ((0, 0), (0, 1)), constant_values=-1)
            # Pieces behind the merged pair move up by one place; the -1 of the padding enters at
            # the end.
            moved = tf.gather(
                behind, places + tf.cast(has_pair & (places > place), tf.int32), batch_dims=1
            )
            piece = tf.gather(self._merged, tf.where(lowest < _NO_RANK, lowest, 0))[:, tf.newaxis]
            return (tf.where(has_pair & (places == place), piece, moved),)

        (rows,) = tf.while_loop(
            lambda rows: tf.reduce_any(best(rows)[1] < _NO_RANK),
            step,
            (rows,),
            shape_invariants=(tf.TensorSpec((None, None), tf.int32),),
        )
        return rows

    def _pair_ranks(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        keys = tf.cast(left, tf.int64) * self.size + tf.cast(right, tf.int64)
        place = tf.searchsorted(self._keys, tf.reshape(keys, [-1]))
        # `searchsorted` returns the length of the array for a key beyond the last one, which the
        # clipped place does not equal either. Behind the end of a row the right half is -1, which
        # would make the key of another pair.
        place = tf.reshape(tf.minimum(place, len(self._keys) - 1), tf.shape(keys))
        known = (tf.gather(self._keys, place) == keys) & (right >= 0)
        return tf.where(known, tf.gather(self._ranks, place), _NO_RANK)

    def text_of(self, ids: list[int]) -> str:
        """Returns what pieces spell."""
        numbers = {symbol: number for number, symbol in enumerate(_symbols_of_bytes())}
        words = "".join(self._pieces[number] for number in ids).split(END_OF_WORD)
        decoded = (
            bytes(numbers.get(x, 0) for x in word).decode(errors="replace") for word in words
        )
        return " ".join(decoded).strip()


def serialized(vocabulary: dict[str, int], merges: list) -> bytes:
    """Returns byte pairs as `BytePairs` reads them.

    Args:
        vocabulary: Numbers of the pieces.
        merges: Pairs of pieces, each a string with a space between them or two strings.

    Raises:
        ValueError: If the numbers have gaps.
    """
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError(
            "The numbers of the pieces must run from 0 without a gap. Received: "
            f"{len(pieces)} pieces with {vocabulary[pieces[0]]} to {vocabulary[pieces[-1]]}"
        )
    pairs = [x.split(" ", 1) if isinstance(x, str) else list(x) for x in merges]
    if odd := [pair for pair in pairs if len(pair) != 2 or not {*pair} <= vocabulary.keys()]:
        raise ValueError(f"Merges must be pairs of pieces. Received: {odd[0]}")
    return json.dumps({"pieces": pieces, "merges": pairs}, ensure_ascii=False).encode()


def _symbols_of_bytes() -> list[str]:
    """Returns the letter that stands for each byte: its own if it can be seen, else a later one."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    invisible = (byte for byte in range(256) if byte not in visible)
    letters = {byte: chr(256 + i) for i, byte in enumerate(invisible)}
    return [letters.get(byte, chr(byte)) for byte in range(256)]
