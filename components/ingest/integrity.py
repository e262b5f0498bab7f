"""Finds damage in encoded pictures that Pillow decodes without a word.

Pillow fills what is missing with grey or black. A picture like that would be stored, and
TensorFlow, which is stricter in places, would stop a training at it. So JPEG is decoded a second
time, at an eighth of its size and in grey, by a reader that takes each warning of libjpeg for an
error; of a PNG, checksums are computed and pixels are counted.
"""

import re
import zlib

import simplejpeg

_JPEG_MAGIC, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# libjpeg's warning about the padding that some cameras write at the end, and the padding bytes.
_FILLED = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_FILLING = b"\0\xff"
# More zeros in a row than entropy-coded data contains, and the end-of-block symbol.
_ZEROS, _NOTHING_FOLLOWS = bytes(16), 0
# Number of trailing zeros up to which a WebP or AVIF counts as intact.
_MOST_ZEROS = 64
# Part of the decoder's error for chroma subsamplings that it does not support.
_RARE_SAMPLING = "subsampling"
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# The passes of an interlaced PNG: first column, first row, column step, row step.
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# Decompressed bytes of a PNG that are checked at a time.
_INFLATED_BYTES = 2**20


def damage(encoded: bytes, width: int, height: int) -> str | None:
    """Returns what is wrong with a JPEG, PNG, WebP or AVIF; None if nothing is.

    WebP and AVIF hold no checksums. For these a tail of zeros counts as damage, as in a file that
    was allocated in full and downloaded in part.

    Args:
        encoded: The bytes.
        width: Width of the picture in pixels, from its header.
        height: Height, likewise.
    """
    if encoded.startswith(_JPEG_MAGIC):
        return _damage_of_jpeg(encoded)
    if encoded.startswith(_PNG_MAGIC):
        return _damage_of_png(encoded, width, height)
    zeros = _MOST_ZEROS
    content = b""
    if encoded.startswith(b"RIFF"):
        name, content = _webp_pixels(encoded)
        # Lossy WebP encodes areas of one colour as zeros: about 100 bytes per million pixels.
        zeros += width * height // 2000 if name == b"VP8 " else 0
    elif encoded[4:8] == b"ftyp":
        content = encoded
    if len(content) - len(content.rstrip(b"\0")) > zeros:
        return "the end is nothing but zeros"
    return None


def _webp_pixels(encoded: bytes) -> tuple[bytes, bytes]:
    """Returns the name and content of the pixels of a WebP; both empty if its pictures move."""
    place = 12
    while place + 8 <= len(encoded):
        name = encoded[place : place + 4]
        length = int.from_bytes(encoded[place + 4 : place + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name, encoded[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
    return b"", b""


def _damage_of_jpeg(encoded: bytes) -> str | None:
    try:
        simplejpeg.decode_jpeg(encoded, "GRAY", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        if _RARE_SAMPLING in str(error):
            # Pillow has decoded it completely already, by the same library.
            if not _has_end(encoded):
                return "the end is missing"
            return "there are zeros inside" if _has_zeros(encoded) else None
        filled = _FILLED.search(str(error))
        end = encoded[: encoded.rindex(_JPEG_END)] if filled else b""
        if filled is None or len(end) - len(end.rstrip(_FILLING)) < int(filled[1]):
            return str(error)
    return "there are zeros inside" if _has_zeros(encoded) else None


def _has_zeros(encoded: bytes) -> bool:
    """Whether there are zeros in the pixels of a JPEG that no encoder writes.

    Zeros are the first code of each table. Unless that says that nothing follows in a block, as it
    does in pictures of one colour with codes of their own, the zeros would be a texture that does
    not exist: all frequencies alike. Only of frames that are one scan after the other: bits that
    refine others are zeros in all pictures.
    """
    place, first_symbols, is_sequential = 2, set(), False
    while place + 4 <= len(encoded) and encoded[place] == 0xFF:
        marker = encoded[place + 1]
        length = int.from_bytes(encoded[place + 2 : place + 4], "big")
        content = encoded[place + 4 : place + 2 + length]
        if marker == 0xDA:
            break
        if marker in (0xC0, 0xC1):
            is_sequential = True
        while marker == 0xC4 and len(content) > 17:
            if content[0] >> 4:
                first_symbols.add(content[17])
            content = content[17 + sum(content[1:17]) :]
        place += 2 + length
    if not is_sequential or first_symbols <= {_NOTHING_FOLLOWS}:
        return False
    end = encoded.find(_JPEG_END, place)
    # Padding that some cameras append is no damage.
    return _ZEROS in encoded[place:end].rstrip(_FILLING)


def _has_end(encoded: bytes) -> bool:
    """Whether the marker that ends a JPEG follows its pixels; TensorFlow asks for no more."""
    place = 2
    while 0 <= (place := encoded.find(b"\xff", place)) < len(encoded) - 1:
        marker = encoded[place + 1]
        if marker == _JPEG_END[1]:
            return True
        if marker == 0xFF:
            place += 1
        elif marker in (0, 1) or 0xD0 <= marker <= 0xD8:
            place += 2
        else:
            place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    return False


def _damage_of_png(encoded: bytes, width: int, height: int) -> str | None:
    inflate, size, place = zlib.decompressobj(), 0, len(_PNG_MAGIC)
    expected, name = None, b""
    while place + 12 <= len(encoded) and name != b"IEND":
        length = int.from_bytes(encoded[place : place + 4], "big")
        name = encoded[place + 4 : place + 8]
        content = encoded[place + 8 : place + 8 + length]
        checksum = encoded[place + 8 + length : place + 12 + length]
        if zlib.crc32(name + content) != int.from_bytes(checksum.ljust(5, b"x"), "big") >> 8:
            return f"the checksum of the part at byte {place} is wrong"
        if name == b"IHDR" and length == 13:
            expected = _png_bytes(width, height, content[8], content[9], content[12])
        elif name == b"IDAT" and expected is not None:
            while content and not inflate.eof and size <= expected:
                try:
                    size += len(inflate.decompress(content, _INFLATED_BYTES))
                except zlib.error as error:
                    return str(error)
                content = inflate.unconsumed_tail
        elif name not in _PNG_CRITICAL and not name[0] & 32:
            return f"a part that nobody knows: {name!r}"
        place += 12 + length
    if name != b"IEND" or not inflate.eof or size != expected:
        return "the pixels are not complete"
    return None


def _png_bytes(width: int, height: int, depth: int, color: int, interlaced: int) -> int:
    """Returns how many bytes the lines of a PNG take, each behind a byte for its filter."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 0)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [
        (-(-max(0, width - left) // across), -(-max(0, height - top) // down))
        for left, top, across, down in passes
    ]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns)
