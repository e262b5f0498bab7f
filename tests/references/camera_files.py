"""JPEG and PNG files with EXIF and XMP of every kind, whole and broken, drawn at random."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

# Bytes of a value by its TIFF type.
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TYPE_BYTES[16] = 8
_TAG = 0x0112
_XMP = (
    '<x tiff:Orientation="%s"/>',
    "<tiff:Orientation>%s</tiff:Orientation>",
    "<x tiff:Orientation='%s'/>",
    ' tiff:Orientation tiff:Orientation="%s" tiff:Orientation="2"',
    '%s \u00e9\x00 tiff:Orientation="5"',
)


def plain(form: str, size: tuple[int, int] = (7, 5), **options) -> bytes:
    """Returns a picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def value(order: str, kind: int, number: int, below: int = 1) -> bytes:
    """Returns a number as a TIFF type stores it."""
    if kind in (11, 12):
        return struct.pack(order + {11: "f", 12: "d"}[kind], number)
    if kind in (5, 10):
        pair = (number * below, below) if below else (number, 0)
        return struct.pack(order + ("LL" if kind == 5 else "ll"), *pair)
    octets = number.to_bytes(8, "little" if order == "<" else "big")
    size = TYPE_BYTES.get(kind, 1)
    return octets[:size] if order == "<" else octets[-size:]


def tiff(order: str, entries: list[tuple], *, head: bytes = b"", begin: int = 8, more: int = 0):
    """Returns a TIFF file of one directory.

    Args:
        order: `<` or `>`.
        entries: Tags, types, counts, the bytes of one value, and where it is said to lie; None for
            where it does.
        head: Replaces the four bytes that begin it.
        begin: Where the directory is said to begin.
        more: Entries that it claims beyond those it has.
    """
    place = min(begin, 100)
    directory, outside = b"", b""
    behind = place + 2 + 12 * len(entries) + 4
    for tag, kind, count, one, lies in entries:
        size = TYPE_BYTES.get(kind, 0) * count
        content = (one * min(count, 5)).ljust(4, b"\0")[:4]
        if size > 4:
            lies = behind + len(outside) if lies is None else lies
            content = struct.pack(order + "L", lies)
            outside += one * min(count, 5)
        directory += struct.pack(order + "HHL", tag, kind, count) + content
    head = head or (b"II*\0" if order == "<" else b"MM\0*")
    start = (head + struct.pack(order + "L", begin)).ljust(place, b"\0")
    count = struct.pack(order + "H", min(len(entries) + more, 65535))
    return start + count + directory + b"\0\0\0\0" + outside


def orientation_tiff(order: str, number: int, *, kind: int = 3, count: int = 1, below: int = 1):
    """Returns EXIF that holds nothing but an orientation."""
    return tiff(order, [(_TAG, kind, count, value(order, kind, number, below), None)])


def segment(marker: int, content: bytes) -> bytes:
    """Returns a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(name: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def exif_segment(content: bytes) -> bytes:
    """Returns the segment of EXIF."""
    return segment(0xE1, b"Exif\0\0" + content)


def xmp_segment(packet: bytes) -> bytes:
    """Returns the segment of XMP."""
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)


def into_jpeg(*parts: bytes, at: int = 2) -> bytes:
    """Returns a JPEG with something put in, behind its first two bytes by default."""
    whole = plain("JPEG")
    return whole[:at] + b"".join(parts) + whole[at:]


def into_png(*parts: bytes, behind: bool = False) -> bytes:
    """Returns a PNG with something put in before its pixels, or behind them."""
    whole = plain("PNG")
    at = whole.index(b"IEND" if behind else b"IDAT") - 4
    return whole[:at] + b"".join(parts) + whole[at:]


def raw_profile(content: bytes) -> bytes:
    """Returns EXIF as ImageMagick writes it into texts."""
    digits = content.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return f"\nexif\n  {len(content):8d}\n{lines}\n".encode()


def text_chunk(kind: str, keyword: bytes, content: bytes, *, compressed: bool = False) -> bytes:
    """Returns a text of a PNG."""
    if kind == "tEXt":
        return chunk(b"tEXt", keyword + b"\0" + content)
    if kind == "zTXt":
        return chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(content))
    flags = b"\1\0" if compressed else b"\0\0"
    content = zlib.compress(content) if compressed else content
    return chunk(b"iTXt", keyword + b"\0" + flags + b"de\0\xc3\xbc\0" + content)


def _random_tiff(rng: random.Random) -> bytes:
    order = rng.choice("<>")
    entries = []
    for _ in range(rng.randrange(6)):
        kind = rng.choice([3] * 6 + list(TYPE_BYTES) + [0, 14, 15, 17, 200])
        number = rng.choice([*range(10), 65535]) if TYPE_BYTES.get(kind) != 1 else rng.randrange(9)
        one = value(order, kind, number, rng.choice([1, 2, 0, -3] if kind == 10 else [1, 2, 0]))
        lies = rng.choice([None] * 8 + [10**6, 2**32 - 1, 0])
        tag = rng.choice([_TAG] * 3 + [0x10F, 0x11A, 0x8769])
        entries.append((tag, kind, rng.choice([1] * 6 + [0, 2, 3, 5, 2**31]), one, lies))
    heads = [b""] * 8 + [b"XX*\0", *([b"II\0*"] if order == "<" else [b"MM*\0", b"MM\0+"])]
    begin = rng.choice([8] * 6 + [rng.randrange(8, 28), 50_000, 2**32 - 1, 0])
    more = rng.choice([0] * 5 + [1, 65_535])
    content = bytearray(tiff(order, entries, head=rng.choice(heads), begin=begin, more=more))
    if rng.random() < 0.15:
        del content[rng.randrange(len(content)) :]
    if content and rng.random() < 0.1:
        for _ in range(3):
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content) + bytes(60_000 if rng.random() < 0.05 else 0)


def _random_xmp(rng: random.Random) -> bytes:
    packet = rng.choice(_XMP).replace("%s", rng.choice(["0", "1", "3", "6", "8", "9", "66", "x"]))
    return packet.encode()


def random_jpeg(rng: random.Random) -> bytes:
    """Returns a JPEG with up to four parts put in somewhere before its pixels."""
    parts = []
    for _ in range(rng.randrange(5)):
        draw = rng.random()
        if draw < 0.5:
            begin = rng.choice([b"Exif\0\0"] * 8 + [b"Exif\0\0Exif\0\0", b"Exif\0", b"exif\0\0"])
            marker = rng.choice([0xE1] * 8 + [0xE2, 0xFE])
            parts.append(segment(marker, (begin + _random_tiff(rng))[:65_533]))
        elif draw < 0.75:
            parts.append(xmp_segment(_random_xmp(rng)))
        elif draw < 0.9:
            parts.append(rng.choice([b"\xff" * rng.randrange(70), b"\xff\0", b"zzz", b"\xff\xd0"]))
        else:
            parts.append(segment(0xFE, b"Exif\0\0 http://ns.adobe.com/xap/1.0/\0 is no EXIF"))
    whole = plain("JPEG")
    places = [2, 2, 20, whole.index(b"\xff\xc0"), whole.index(b"\xff\xda")]
    return into_jpeg(*parts, at=rng.choice(places))


def random_png(rng: random.Random) -> bytes:
    """Returns a PNG with up to three chunks put in before or behind its pixels."""
    parts = []
    for _ in range(rng.randrange(4)):
        draw = rng.random()
        kind, compressed = rng.choice(["tEXt", "zTXt", "iTXt"]), rng.random() < 0.5
        exif = rng.choice([b"", b"Exif\0\0"]) + _random_tiff(rng)
        if draw < 0.45:
            parts.append(chunk(b"eXIf", exif))
        elif draw < 0.7:
            text = raw_profile(exif)
            text = rng.choice(
                [text] * 6 + [text.replace(b"\n", b" ", 1), text.strip(), text.upper()]
            )
            parts.append(text_chunk(kind, b"Raw profile type exif", text, compressed=compressed))
        elif draw < 0.9:
            packet = _random_xmp(rng)
            parts.append(text_chunk(kind, b"XML:com.adobe.xmp", packet, compressed=compressed))
        else:
            parts.append(chunk(b"tEXt", b"Comment\0eXIf Raw profile type exif XML:com.adobe.xmp"))
    return into_png(*parts, behind=rng.random() < 0.3)
