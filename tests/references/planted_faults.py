"""Bad input of every kind, made by code, with what is to become of it."""

import csv
import gzip
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# What the corpus is ingested with: limits that some of its kinds break.
CONFIG = {
    "eval_sources": ["held"],
    "limits": {"max_bytes": 300_000, "max_pixels": 1_000_000, "min_side": 16, "max_aspect": 4.0},
    "duplicates": {"keep": "best"},
    "filters": {
        "clean_text": True,
        "min_words": 2,
        "languages": ["en"],
        "file_names": True,
        "boilerplate": True,
        "max_repeats": 3,
        "min_deviation": 2.0,
        "scores": {"punsafe": {"max": 0.5}},
    },
    "shard_records": 16,
}
GOOD = 60
WRITTEN = None


def picture(seed, size=(64, 48)):
    """Returns a picture unlike that of any other seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encode(image, form="PNG", **options):
    """Returns an encoded picture."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def caption(number):
    """Returns a caption unlike that of any other number."""
    names = ("red", "green", "blue", "yellow", "black", "white", "orange")
    things = ("house", "river", "mountain", "bicycle", "kitchen", "garden", "window", "street")
    color, thing = names[number % len(names)], things[number // len(names) % len(things)]
    return f"a photograph of the {color} {thing} in the morning, taken {number} days ago"


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, pixels=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _jpeg(width, height):
    content = bytearray(encode(picture(1), "JPEG"))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def _bmp(width, height):
    content = bytearray(encode(picture(1), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def _flipped(content, place):
    content = bytearray(content)
    content[place] ^= 0x55
    return bytes(content)


def _tiff():
    return encode(picture(2), "TIFF")


def _animation():
    frames = [picture(900 + i) for i in range(3)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture(903), "JPEG", exif=exif)


def _samples():
    """Returns, by kind, what becomes of it and the members of its sample."""
    png = encode(picture(100))
    jpeg = encode(picture(101, (200, 150)), "JPEG", quality=95)
    text = caption(0).encode()

    def image(content, suffix="png"):
        return {suffix: content, "txt": text}

    def chunk(kind):
        return image(png[:-12] + _chunk(kind, b"") + png[-12:])

    def words(content):
        content = content.encode() if isinstance(content, str) else content
        return {"png": png, "txt": content}

    def meta(content):
        return {"png": png, "txt": text, "json": content}

    def scored(value):
        return {"png": png, "txt": text, "json": json.dumps({"punsafe": value}).encode()}

    kinds = {
        "png_cut": ("corrupt_image", image(png[: len(png) // 2])),
        "jpeg_cut": ("corrupt_image", image(jpeg[: len(jpeg) // 2], "jpg")),
        "jpeg_cut_in_header": ("corrupt_image", image(jpeg[:12], "jpg")),
        "png_zeroed": ("corrupt_image", image(png[:200] + bytes(len(png) - 200))),
        "png_wrong_stream": ("corrupt_image", image(_png(64, 64, zlib.compress(bytes(99))[:-4]))),
        "png_few_lines": ("corrupt_image", image(_png(64, 64, zlib.compress(bytes(20 * 193))))),
        "png_without_end": ("corrupt_image", image(png[:-12])),
        "png_unknown_part": ("corrupt_image", chunk(b"ABCD")),
        "png_wrong_checksum": ("corrupt_image", image(_flipped(png, len(png) // 2))),
        "png_without_pixels": ("corrupt_image", image(_png(64, 64))),
        "png_of_no_size": ("unsupported_image", image(_png(0, 0))),
        "image_empty": ("unsupported_image", image(b"")),
        "image_text": ("unsupported_image", image(b"not found", "jpg")),
        "image_html": ("unsupported_image", image(b"<html>404</html>", "jpg")),
        "image_svg": ("unsupported_image", image(b"<svg xmlns='http://www.w3.org/2000/svg'/>")),
        "image_tiff": ("unsupported_image", image(_tiff())),
        "image_pdf": ("unsupported_image", image(b"%PDF-1.7\n" + bytes(100))),
        "image_random": ("unsupported_image", image(np.random.default_rng(0).bytes(1000))),
        "image_pickle": ("unsupported_image", image(b"\x80\x04\x95\x00.")),
        "jpeg_bomb": ("too_many_pixels", image(_jpeg(65_000, 65_000), "jpg")),
        "png_bomb": ("too_many_pixels", image(_png(30_000, 30_000))),
        "png_overflow": ("too_many_pixels", image(_png(2**31 - 1, 2**31 - 1))),
        "bmp_bomb": ("too_many_pixels", image(_bmp(20_000, 20_000), "bmp")),
        "image_large": ("too_many_bytes", image(png + bytes(300_000))),
        "image_small": ("too_small", image(encode(picture(3, (64, 8))))),
        "image_long": ("extreme_aspect", image(encode(picture(4, (200, 20))))),
        "image_white": ("blank_image", image(encode(Image.new("RGB", (64, 64), "white")))),
        "image_clear": ("blank_image", image(encode(Image.new("RGBA", (64, 64), (9, 9, 9, 0))))),
        "image_missing": ("missing_image", {"txt": text}),
        "text_missing": ("missing_text", {"png": png}),
        "text_empty": ("empty_text", words(b"")),
        "text_spaces": ("empty_text", words(b" \t\r\n ")),
        "text_controls": ("empty_text", words(b"\x00\x01\x02")),
        "text_invisible": ("empty_text", words("\u200b\u2060")),
        "text_tags": ("empty_text", words(b"<b><br/></b>")),
        "text_latin": ("invalid_utf8", words("caf\xe9 in the morning".encode("latin-1"))),
        "text_utf16": ("invalid_utf8", words(caption(1).encode("utf-16"))),
        "text_long": ("text_too_long", words(b"word " * 4000)),
        "text_short": ("text_too_short", words(b"house")),
        "text_german": ("other_language", words("Ein altes Haus am Fluss im Morgengrauen")),
        "text_chinese": ("other_language", words("\u6cb3\u8fb9\u7684 \u8001\u623f\u5b50")),
        "text_file_name": ("file_name_text", words(b"IMG 2041")),
        "text_boilerplate": ("boilerplate_text", words(b"Click here to enlarge the picture")),
        "text_url": ("boilerplate_text", words(b"https://example.org/a https://example.org/b")),
        "json_cut": ("invalid_metadata", meta(b'{"a": ')),
        "json_list": ("invalid_metadata", meta(b"[1, 2]")),
        "json_deep": ("invalid_metadata", meta(b'{"a":' * 100_000)),
        "json_large": ("invalid_metadata", meta(b'{"a": "' + b"x" * 2**20 + b'"}')),
        "json_caption_number": ("invalid_metadata", meta(b'{"caption": 7}')),
        "json_latin": ("invalid_utf8", meta(b'{"a": "\xe9"}')),
        "json_half_surrogate": ("invalid_utf8", meta(b'{"caption": "half \\ud800"}')),
        "score_high": ("score_out_of_range", scored(0.9)),
        "score_words": ("score_out_of_range", scored("high")),
        "score_missing": ("score_out_of_range", {"png": png, "txt": text, "json": b"{}"}),
        "text_repeated": ("repeated_text", None),
        "copy_exact": ("duplicate", None),
        "copy_reencoded": ("duplicate", None),
        "copy_scaled": ("duplicate", None),
        "copy_of_held": ("leak", None),
        # What looks bad, and is taken.
        "wrong_suffix": (WRITTEN, image(encode(picture(902), "JPEG"), "png")),
        "turned": (WRITTEN, image(_turned(), "jpg")),
        "moving": (WRITTEN, image(_animation(), "gif")),
        "colors_of_print": (WRITTEN, image(encode(picture(904).convert("CMYK"), "JPEG"), "jpg")),
        "byte_order_mark": (WRITTEN, words(b"\xef\xbb\xbf" + text)),
        "label_negative": (WRITTEN, meta(b'{"label": -1, "punsafe": 0.1}')),
        "json_number": (WRITTEN, meta(b'{"punsafe": 0.1, "a": ' + b"9" * 5000 + b"}")),
        "label_words": (WRITTEN, meta(b'{"label": "cat", "punsafe": 0.1}')),
        "entities": (WRITTEN, words("salt &amp; pepper on the table")),
    }
    found = {}
    number = 1000
    for kind, (reason, members) in kinds.items():
        if members is None:
            continue
        number += 1
        members = dict(members)
        # Captions and pictures of their own, where these are not what is wrong.
        if members.get("txt") == text:
            members["txt"] = caption(number).encode()
        if members.get("png") == png:
            members["png"] = encode(picture(number))
        if kind != "score_missing":
            members.setdefault("json", json.dumps({"punsafe": 0.1}).encode())
        found[kind] = (reason, members)
    return found


def write_shards(folder: Path) -> dict[str, str | None]:
    """Writes WebDataset tars; returns, by key, the reason, or None for what is to be written."""
    folder.mkdir(parents=True)
    safe = json.dumps({"punsafe": 0.1}).encode()
    good = {}
    for number in range(GOOD):
        good[f"good{number:03d}"] = {
            "png": encode(picture(2000 + number)),
            "txt": caption(number).encode(),
            "json": safe,
        }
    held = {
        f"held{number}": {
            "png": encode(picture(3000 + number, (128, 96))),
            "txt": caption(500 + number).encode(),
            "json": safe,
        }
        for number in range(12)
    }
    planted = _samples()
    for i in range(4):
        members = {"png": encode(picture(4000 + i)), "txt": b"the very same words", "json": safe}
        planted[f"text_repeated{i}"] = ("repeated_text", members)

    def copy(kind, reason, content, number):
        members = {"png": content, "txt": caption(600 + number).encode(), "json": safe}
        planted[kind] = (reason, members)

    large = picture(2000, (64, 48))
    good["good000"]["png"] = encode(large)
    # Smaller, or with a shorter caption: the original stays.
    for number in range(3):
        good[f"good{number:03d}"]["txt"] += b", with everything that belongs to it"
    copy("copy_exact", "duplicate", good["good000"]["png"], 0)
    copy("copy_reencoded", "duplicate", encode(picture(2001), "JPEG", quality=90), 1)
    copy("copy_scaled", "duplicate", encode(picture(2002).resize((48, 36))), 2)
    copy("copy_of_held", "leak", encode(picture(3000, (128, 96)), "JPEG", quality=90), 3)
    expected = dict.fromkeys([*good, *held], WRITTEN)
    expected |= {kind: reason for kind, (reason, _) in planted.items()}
    samples = list((good | {kind: members for kind, (_, members) in planted.items()}).items())
    # Bad ones among good ones, in three shards.
    order = np.random.default_rng(7).permutation(len(samples))
    for shard in range(3):
        _write_tar(folder / f"web-{shard:05d}.tar", [samples[i] for i in order[shard::3]])
    _write_tar(folder / "held-00000.tar", list(held.items()))
    expected |= _damaged_shards(folder, safe)
    return expected


def _damaged_shards(folder, safe):
    """Writes archives that are damaged; their names stand for the keys of the rejections."""

    def sample(number):
        members = {"png": encode(picture(number)), "txt": caption(number).encode(), "json": safe}
        return f"part{number}", members

    expected = {}
    for place, kind in enumerate(("cut", "header", "gzip", "empty", "page")):
        path = folder / f"{kind}-00000.tar"
        samples = [sample(5000 + 10 * place + i) for i in range(2)]
        _write_tar(path, samples)
        content = path.read_bytes()
        whole = [samples[0][0]]
        if kind == "cut":
            content = content[: content.index(samples[1][0].encode()) + 600]
        elif kind == "header":
            second = content.index(samples[1][0].encode())
            content = content[: second + 100] + b"\xff" * 300 + content[second + 400 :]
        elif kind == "gzip":
            path.unlink()
            path = folder / f"{kind}-00000.tar.gz"
            packed = gzip.compress(content, mtime=0)
            content, whole = packed[: len(packed) // 2], []
        else:
            content, whole = b"" if kind == "empty" else b"<html>not found</html>", []
        path.write_bytes(content)
        expected |= dict.fromkeys(whole, WRITTEN)
        expected[path.name] = "damaged_archive"
    return expected


def _write_tar(path, samples):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_table(folder: Path) -> dict[str, str | None]:
    """Writes a table with paths of images; returns, by key, the reason or None, as above.

    Its last two rows are broken, `invalid_row`, and have no key.
    """
    (folder / "images").mkdir(parents=True)
    rows, expected = [], {}

    def add(key, path, reason, text=None):
        rows.append((key, path, caption(len(rows)) if text is None else text, "0.1"))
        expected[key] = reason

    for number in range(20):
        name = f"images/{number}.png"
        (folder / name).write_bytes(encode(picture(6000 + number)))
        add(f"good{number}", name, WRITTEN)
    (folder / "images" / "folder.png").mkdir()
    (folder / "secret").write_bytes(encode(picture(7000)))
    add("path_above", "../../../../etc/passwd", "unsafe_path")
    add("path_above_within", "images/../../secret.png", "unsafe_path")
    add("path_absolute", "/etc/passwd", "unsafe_path")
    add("path_of_nothing", "images/none.png", "missing_image")
    add("path_of_folder", "images/folder.png", "missing_image")
    add("path_empty", "", "missing_image")
    add("text_of_row_empty", "images/1.png", "empty_text", "")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("key", "image", "caption", "punsafe"))
    writer.writerows(rows)
    # Too few values, and too many.
    lines.write("short\n")
    writer.writerow(("long", "images/2.png", "a house by the river", "0.1", "more", "yet more"))
    (folder / "pairs.csv").write_text(lines.getvalue(), newline="")
    return expected
