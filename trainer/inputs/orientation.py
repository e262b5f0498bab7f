"""The orientation that a camera noted in a JPEG or PNG, read and undone by TensorFlow operations.

Ingest stores pictures upright; whoever sends one to a served model sends what the camera wrote. The
tag is therefore read inside the graph, by the rules of Pillow's `ImageOps.exif_transpose`: from
EXIF, and from XMP where EXIF has no such tag. A tag that cannot be read turns nothing and fails
nothing.

Most pictures have no tag, which a search for its keywords tells; only with one of them are the
parts of the file walked through.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# The keywords that begin the segments of a JPEG, and the text chunks of a PNG.
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_EXIF = b"eXIf"
_PNG_RAW_PROFILE = b"Raw profile type exif"
_PNG_XMP = b"XML:com.adobe.xmp"
# The tag in XMP, as an attribute and as an element.
_XMP_TAG = b"tiff:Orientation"
# No file that is well meant has more parts, longer EXIF or longer compressed text. The limits bound
# the work that a hostile one can ask for.
_MAX_PARTS = 1 << 14
_MAX_EXIF_BYTES = 1 << 20
_MAX_COMPRESSED_BYTES = 1 << 16
_APP1, _SOS = 0xE1, 0xDA
# JPEG markers without a length: restarts, start and end of image, and reserved ones.
_NO_LENGTH = ((0x01, 0xBF), (0xC8, 0xC8), (0xD0, 0xD9), (0xF0, 0xFD))
_PNG_SIGNATURE_BYTES, _PNG_AROUND_CONTENT = 8, 12
# TIFF: both byte orders, and the mixed headers that Pillow takes.
_TIFF_HEADERS = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+")
_TIFF_HEADER_BYTES, _TIFF_ENTRY_BYTES = 8, 12
_ORIENTATION_TAG = 0x0112
# Bytes of a value by its TIFF type; 0 where there is no such type.
_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 0)
_RATIONAL, _SIGNED_RATIONAL, _FLOAT, _DOUBLE = 5, 10, 11, 12
# Bytes and texts are no numbers.
_NOT_NUMBERS = (1, 2, 7)
_ORIENTATIONS = np.arange(9)
_ABSENT, _UPRIGHT, _LAST = 0, 1, 8


# A function that is not inlined costs a graph that does not call it one operation, instead of
# passing over all of its own: 41 instead of 123 microseconds for a picture without a tag.
_apart = functools.partial(
    tf.function, autograph=False, experimental_attributes={"_noinline": True}
)


def read(encoded: tf.Tensor, is_jpeg: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a picture, int32: 1, upright, to 8.

    Args:
        encoded: The bytes of a JPEG or PNG, a scalar string.
        is_jpeg: Whether it is a JPEG, a scalar bool.
    """
    size = tf.strings.length(encoded)

    def _has(*keywords: bytes) -> tf.Tensor:
        return tf.reduce_any([_find(encoded, keyword) < size for keyword in keywords])

    has_tag = tf.cond(
        is_jpeg, lambda: _has(_EXIF, _XMP), lambda: _has(_PNG_EXIF, _PNG_RAW_PROFILE, _PNG_XMP)
    )
    return tf.cond(has_tag, lambda: _read_parts(encoded, is_jpeg), lambda: tf.constant(_UPRIGHT))


@_apart(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.bool)])
def _read_parts(encoded: tf.Tensor, is_jpeg: tf.Tensor) -> tf.Tensor:
    exif = tf.cond(is_jpeg, lambda: _jpeg_exif(encoded), lambda: _png_exif(encoded))
    tag = tf.cond(tf.size(exif) > 0, lambda: _of_tiff(exif), lambda: tf.constant(_ABSENT))

    def _of_xmp_packet() -> tf.Tensor:
        return _of_xmp(
            tf.cond(
                is_jpeg,
                lambda: _jpeg_content(encoded, _XMP, join=False),
                lambda: _png_text(encoded, _PNG_XMP),
            )
        )

    return tf.cond(tf.equal(tag, _ABSENT), _of_xmp_packet, lambda: tf.identity(tag))


def upright_sides(sides: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns `(height, width)` of the upright picture, from those that are stored."""
    # The orientations from 5 on exchange rows and columns.
    return tf.where(orientation >= 5, tf.reverse(sides, [0]), sides)


def stored_window(window: tf.Tensor, sides: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns where a part of the upright picture lies in the stored one.

    Args:
        window: `(top, left, height, width)` in the upright picture, int32.
        sides: `(height, width)` of the upright picture, int32.
        orientation: Of the stored picture.
    """
    begin, size = window[:2], window[2:]
    reversed_axes = tf.stack([_upside_down(orientation), _mirrored(orientation)])
    begin = tf.where(reversed_axes, sides - begin - size, begin)
    begin, size = upright_sides(begin, orientation), upright_sides(size, orientation)
    return tf.concat([begin, size], 0)


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns a stored picture upright.

    Args:
        image: Shape `(height, width, channels)`, uint8.
        orientation: A scalar, 1 to 8.
    """

    return tf.cond(
        orientation > _UPRIGHT, lambda: _turned(image, orientation), lambda: tf.identity(image)
    )


@_apart(input_signature=[tf.TensorSpec([None, None, None], tf.uint8), tf.TensorSpec([], tf.int32)])
def _turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    image = tf.cond(
        orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: tf.identity(image)
    )
    for condition, axis in ((_mirrored(orientation), 1), (_upside_down(orientation), 0)):
        image = tf.cond(
            condition,
            lambda image=image, axis=axis: tf.reverse(image, [axis]),
            lambda image=image: tf.identity(image),
        )
    return image


def _is_in(value: tf.Tensor, *values: int) -> tf.Tensor:
    return tf.reduce_any(tf.equal(value, values))


def _mirrored(orientation: tf.Tensor) -> tf.Tensor:
    return _is_in(orientation, 2, 3, 6, 7)


def _upside_down(orientation: tf.Tensor) -> tf.Tensor:
    return _is_in(orientation, 3, 4, 7, 8)


def _jpeg_exif(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the TIFF file that is EXIF, as int32; empty without one."""
    return _octets(_jpeg_content(encoded, _EXIF, join=True))


def _png_exif(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF of a PNG as `_jpeg_exif` does: from a chunk of its own, else from text."""
    chunk = _walk(encoded, _PNG_SIGNATURE_BYTES, _png_chunk(encoded, _PNG_EXIF), _PNG_EXIF)
    return tf.cond(
        tf.strings.length(chunk) > 0,
        lambda: _octets(chunk),
        lambda: _from_raw_profile(_png_text(encoded, _PNG_RAW_PROFILE)),
    )


def _octets(content: tf.Tensor) -> tf.Tensor:
    content = tf.strings.regex_replace(content, r"^(?:Exif\x00\x00)+", "")
    return tf.cast(tf.io.decode_raw(content, tf.uint8), tf.int32)


def _find(encoded: tf.Tensor, keyword: bytes) -> tf.Tensor:
    """Returns where a keyword first occurs; the length of the bytes where it does not."""
    # Cutting off all that follows costs a fraction of a full match, which cannot skip ahead to the
    # first letter.
    escaped = "".join(f"\\x{byte:02x}" for byte in keyword)
    return tf.strings.length(
        tf.strings.regex_replace(encoded, escaped + r"\C*", "", replace_global=False)
    )


# What a reader of parts returns for a place: where the next part begins, where the content of this
# one lies, and its length, which is -1 for parts that are not looked for.
_Part = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def _walk(
    encoded: tf.Tensor,
    begin: int,
    read_part: Callable[[tf.Tensor], _Part],
    keyword: bytes,
    *,
    join: bool = False,
) -> tf.Tensor:
    """Walks through the parts of a file and returns the contents of those that are looked for.

    Args:
        encoded: The file.
        begin: Where the first part begins.
        read_part: Reads the part at a place.
        keyword: What none of those parts is without.
        join: Whether contents are joined; otherwise the last one counts.
    """
    size = tf.strings.length(encoded)
    first = _find(encoded, keyword)

    def _walked() -> tf.Tensor:
        behind = first + len(keyword)
        # Mostly the keyword occurs once, and the walk ends with its part. Where it occurs again,
        # perhaps by chance within a picture, all parts are visited.
        again = _find(tf.strings.substr(encoded, behind, -1), keyword) < size - behind
        end = tf.where(again, size, behind)

        def _next(place: tf.Tensor, count: tf.Tensor, content: tf.Tensor) -> tuple[tf.Tensor, ...]:
            following, start, length = read_part(place)
            is_one = length >= 0
            part = tf.strings.substr(encoded, tf.minimum(start, size), tf.maximum(length, 0))
            if join:
                is_short = tf.strings.length(content) < _MAX_EXIF_BYTES
                part = tf.where(is_one & is_short, part, "")
                content = tf.strings.join([content, part])
            else:
                content = tf.where(is_one, part, content)
            return tf.minimum(following, size), count + 1, content

        _, _, content = tf.while_loop(
            lambda place, count, _: (place < end) & (count < _MAX_PARTS),
            _next,
            (tf.constant(begin), tf.constant(0), tf.constant(b"")),
            parallel_iterations=1,
        )
        return content

    return tf.cond(first < size, _walked, lambda: tf.constant(b""))


def _bytes_at(encoded: tf.Tensor, place: tf.Tensor, count: int) -> tf.Tensor:
    """Returns bytes as int32; zeros behind the end."""
    part = tf.strings.substr(encoded, place, count)
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=count), tf.int32)


def _jpeg_content(encoded: tf.Tensor, keyword: bytes, *, join: bool) -> tf.Tensor:
    """Returns what follows the keyword in the APP1 segments that begin with it."""
    size = tf.strings.length(encoded)

    def _read_part(place: tf.Tensor) -> _Part:
        head = _bytes_at(encoded, place, 4 + len(keyword))
        marker, length = head[1], head[2] * 256 + head[3]
        is_marker = tf.equal(head[0], 0xFF)
        # Fill bytes before a marker, and stray bytes between segments, are passed over one by one.
        step = tf.where(_is_in(marker, 0xFF), 1, 2 + tf.maximum(length, 2))
        has_no_length = tf.reduce_any(
            [(marker >= low) & (marker <= high) for low, high in _NO_LENGTH]
        )
        step = tf.where(has_no_length | tf.equal(marker, 0), 2, step)
        step = tf.where(is_marker, step, 1)
        step = tf.where(is_marker & tf.equal(marker, _SOS), size - place, step)
        matches = is_marker & tf.equal(marker, _APP1) & (length >= 2 + len(keyword))
        matches &= tf.reduce_all(tf.equal(head[4 : 4 + len(keyword)], list(keyword)))
        content = tf.where(matches, length - 2 - len(keyword), -1)
        return place + step, place + 4 + len(keyword), content

    return _walk(encoded, 0, _read_part, keyword, join=join)


def _png_chunk(encoded: tf.Tensor, name: bytes) -> Callable[[tf.Tensor], _Part]:
    def _read_part(place: tf.Tensor) -> _Part:
        following, length, head = _png_part(encoded, place, 0)
        matches = tf.reduce_all(tf.equal(head[4:8], list(name)))
        return following, place + 8, tf.where(matches, length, -1)

    return _read_part


def _png_part(encoded: tf.Tensor, place: tf.Tensor, more: int) -> _Part:
    """Returns where the next chunk begins, this one's length, and its first bytes."""
    head = _bytes_at(encoded, place, 8 + more)
    left = tf.strings.length(encoded) - place
    length = tf.reduce_sum(head[:4] * [1 << 24, 1 << 16, 1 << 8, 1])
    # A chunk that claims more than there is is the last one.
    length = tf.where(head[0] < 0x80, tf.minimum(length, left), left)
    return place + _PNG_AROUND_CONTENT + length, length, head


def _png_text(encoded: tf.Tensor, keyword: bytes) -> tf.Tensor:
    """Returns the last text of a keyword, decompressed; empty without one."""

    def _read_part(place: tf.Tensor) -> _Part:
        following, length, head = _png_part(encoded, place, len(keyword) + 1)
        matches = tf.reduce_all(tf.equal(head[8 : 9 + len(keyword)], [*keyword, 0]))
        names = tf.constant([list(b"tEXt"), list(b"zTXt"), list(b"iTXt")])
        matches &= tf.reduce_any(tf.reduce_all(tf.equal(head[4:8], names), axis=1))
        matches &= length > len(keyword)
        return following, place + 4, tf.where(matches, length + 4, -1)

    chunk = _walk(encoded, _PNG_SIGNATURE_BYTES, _read_part, keyword)
    return tf.cond(
        tf.equal(tf.strings.length(chunk), 0), lambda: chunk, lambda: _text_of(chunk, keyword)
    )


def _text_of(chunk: tf.Tensor, keyword: bytes) -> tf.Tensor:
    """Returns the text of a chunk that begins with its name and keyword."""
    rest = tf.strings.substr(chunk, 4 + len(keyword) + 1, -1)
    is_compressed = _bytes_at(rest, tf.constant(0), 1)[0] > 0
    name = tf.strings.substr(chunk, 0, 4)
    text = tf.case(
        [
            (tf.equal(name, b"zTXt"), lambda: tf.strings.regex_replace(rest, r"^\C", "")),
            # Behind two flags: a language and a translation of the keyword.
            (
                tf.equal(name, b"iTXt"),
                lambda: tf.strings.regex_replace(rest, r"^\C\C\C*?\x00\C*?\x00", ""),
            ),
        ],
        default=lambda: tf.identity(rest),
    )
    is_compressed = tf.equal(name, b"zTXt") | tf.equal(name, b"iTXt") & is_compressed
    return tf.cond(is_compressed, lambda: _decompressed(text), lambda: tf.identity(text))


def _decompressed(text: tf.Tensor) -> tf.Tensor:
    """Returns what zlib compressed; empty if it is too long or damaged."""
    text = tf.where(tf.strings.length(text) <= _MAX_COMPRESSED_BYTES, text, "")
    # Only a data set goes on after an error: where the stream is damaged, the empty text remains.
    plain = (
        tf.data.Dataset.from_tensors(text)
        .map(lambda item: tf.io.decode_compressed(item, "ZLIB"))
        .ignore_errors()
        .concatenate(tf.data.Dataset.from_tensors(tf.constant(b"")))
        .take(1)
    )
    return plain.get_single_element()


def _from_raw_profile(text: tf.Tensor) -> tf.Tensor:
    """Returns EXIF that is written in hexadecimal digits, behind three lines."""

    def _octets_of_digits() -> tf.Tensor:
        has_lines = tf.strings.regex_full_match(text, r"(?:\C*?\n){3}\C*")
        digits = tf.strings.regex_replace(text, r"^(?:\C*?\n){3}", "")
        digits = tf.strings.regex_replace(tf.where(has_lines, digits, ""), r"\n", "")
        valid = tf.strings.regex_full_match(digits, r"(?:\s*[0-9a-fA-F]{2})*\s*")
        digits = tf.strings.lower(tf.strings.regex_replace(digits, r"\s", ""))
        digits = tf.strings.regex_replace(digits, f"^(?:{_EXIF.hex()})+", "")
        # Text that holds no digits becomes one zero, which is no TIFF file.
        values = tf.cast(tf.io.decode_raw(tf.where(valid, digits, "00"), tf.uint8), tf.int32)
        values -= tf.where(values >= ord("a"), ord("a") - 10, ord("0"))
        pairs = tf.reshape(values, (-1, 2))
        return pairs[:, 0] * 16 + pairs[:, 1]

    is_empty = tf.equal(tf.strings.length(text), 0)
    return tf.cond(is_empty, lambda: tf.zeros([0], tf.int32), _octets_of_digits)


def _of_tiff(content: tf.Tensor) -> tf.Tensor:
    """Returns the orientation that the first directory of a TIFF file holds.

    Pillow reads its entries in their order up to one whose value lies outside of the file, and of
    two with the same tag the later one. A tag that holds no orientation is upright.

    Args:
        content: The bytes, int32 `(length,)`.

    Returns:
        A scalar, int32; 0 without the tag.
    """
    size = tf.size(content)
    header = _padded(content[:_TIFF_HEADER_BYTES], _TIFF_HEADER_BYTES)
    known = tf.constant([list(magic) for magic in _TIFF_HEADERS])
    is_tiff = tf.reduce_any(tf.reduce_all(tf.equal(header[:4], known), axis=1))
    is_tiff &= size >= _TIFF_HEADER_BYTES
    little = tf.equal(header[0], known[0, 0])

    def _number(octets: tf.Tensor) -> tf.Tensor:
        """Returns unsigned numbers of the last axis, int64."""
        weights = [1 << 8 * place for place in range(octets.shape[-1] or 0)]
        weights = tf.where(little, weights, weights[::-1])
        return tf.reduce_sum(tf.cast(octets, tf.int64) * tf.cast(weights, tf.int64), axis=-1)

    def _directory() -> tf.Tensor:
        large = tf.cast(size, tf.int64)
        begin = tf.cast(tf.minimum(_number(header[4:8]), large), tf.int32)
        count = _number(_padded(content[begin : begin + 2], 2))
        is_there = begin + 2 <= size
        whole = tf.maximum(size - begin - 2, 0) // _TIFF_ENTRY_BYTES
        count = tf.where(is_there, tf.minimum(tf.cast(count, tf.int32), whole), 0)
        first = tf.minimum(begin + 2, size)
        entries = tf.reshape(
            content[first : first + count * _TIFF_ENTRY_BYTES], (-1, _TIFF_ENTRY_BYTES)
        )
        kind = tf.cast(_number(entries[:, 2:4]), tf.int32)
        unit = tf.gather(_TYPE_BYTES, tf.minimum(kind, len(_TYPE_BYTES) - 1))
        length = _number(entries[:, 4:8]) * tf.cast(unit, tf.int64)
        place = _number(entries[:, 8:12])
        # Up to four bytes of a value lie in the entry itself; of more, the entry has the place.
        outside = length > 4
        rows = tf.range(count)
        # Index of the first entry whose value lies outside of the file; Pillow reads no further.
        cut = tf.reduce_min(tf.where(outside & (place + length > large), rows, count))
        holds = tf.equal(_number(entries[:, :2]), _ORIENTATION_TAG) & (length > 0) & (rows < cut)
        row = tf.reduce_max(tf.where(holds, rows, -1))

        def _value() -> tf.Tensor:
            inside = first + row * _TIFF_ENTRY_BYTES + 8
            start = tf.where(outside[row], tf.cast(tf.minimum(place[row], large), tf.int32), inside)
            octets = _padded(content[start : start + unit[row]], 8)
            return _of_value(kind[row], octets, _number)

        return tf.cond(row >= 0, _value, lambda: tf.constant(_ABSENT))

    return tf.cond(is_tiff, _directory, lambda: tf.constant(_UPRIGHT))


def _padded(octets: tf.Tensor, count: int) -> tf.Tensor:
    """Returns so many bytes, with zeros behind those that there are."""
    return tf.ensure_shape(tf.pad(octets, [[0, count]])[:count], (count,))


def _of_value(
    kind: tf.Tensor, octets: tf.Tensor, number: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Returns the orientation that a value of a TIFF type equals; upright if none.

    Args:
        kind: The type.
        octets: Eight bytes, zeros behind those of the value.
        number: Makes unsigned numbers of bytes.
    """
    low, high = number(octets[:4]), number(octets[4:])
    # Both halves of a signed rational may be negative, which makes a positive number.
    signed = tf.equal(kind, _SIGNED_RATIONAL)
    above, below = (tf.where(signed & (x >= 1 << 31), x - (1 << 32), x) for x in (low, high))
    ratios = tf.not_equal(below, 0) & tf.equal(above, below * _ORIENTATIONS)
    singles = tf.equal(low, _ORIENTATIONS.astype(np.float32).view(np.uint32).astype(np.int64))
    doubles = tf.equal(number(octets), _ORIENTATIONS.astype(np.float64).view(np.int64))
    sizes = tf.gather(_TYPE_BYTES, kind)
    integers = tf.equal(
        tf.case(
            [
                (tf.equal(sizes, 1), lambda: number(octets[:1])),
                (tf.equal(sizes, 2), lambda: number(octets[:2])),
                (tf.equal(sizes, 4), lambda: low),
            ],
            default=lambda: number(octets),
        ),
        _ORIENTATIONS,
    )
    matches = tf.where(_is_in(kind, _RATIONAL, _SIGNED_RATIONAL), ratios, integers)
    matches = tf.where(tf.equal(kind, _FLOAT), singles, matches)
    matches = tf.where(tf.equal(kind, _DOUBLE), doubles, matches)
    matches &= tf.logical_not(_is_in(kind, *_NOT_NUMBERS))
    # At most one orientation is equal, so that the sum is that one; 0 is none.
    value = tf.reduce_sum(tf.where(matches, _ORIENTATIONS, 0))
    return tf.cast(tf.maximum(value, _UPRIGHT), tf.int32)


def _of_xmp(packet: tf.Tensor) -> tf.Tensor:
    """Returns the orientation of XMP, by the first tag that a digit follows; else upright."""

    def _tag() -> tf.Tensor:
        pattern = rf"\C*?{_XMP_TAG.decode()}(?:=\"|>)([0-9])\C*"
        rest = tf.strings.regex_replace(packet, pattern, r"\1")
        has_tag = tf.strings.regex_full_match(rest, r"[0-9]")
        digit = tf.strings.to_number(tf.where(has_tag, rest, "1"), tf.int32)
        return tf.where((digit > _UPRIGHT) & (digit <= _LAST), digit, _UPRIGHT)

    has_name = _find(packet, _XMP_TAG) < tf.strings.length(packet)
    return tf.cond(has_name, _tag, lambda: tf.constant(_UPRIGHT))
