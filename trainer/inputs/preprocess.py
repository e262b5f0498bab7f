"""From encoded images and texts to the model's inputs; the same code trains and serves.

Only core TensorFlow and TF-Text operations that the stock TF Serving binary links.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sigline.trainer.config import DataConfig, ImageTowerConfig, TextTowerConfig
from sigline.trainer.inputs import orientation, randaugment, resampling, vocabularies
from sigline.trainer.inputs.views import View

_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES = 33
# A bit of a PNG's colour type, and the chunk that makes a colour transparent.
_PNG_ALPHA = 4
_PNG_TRANSPARENCY = r"\C*tRNS\C*"
_PNG_PALETTE = 3
# Largest image that is made floats before it is resized, in pixels.
_FLOAT_PIXELS = 1 << 20
# Most that a side is longer than the other one where the aspect is kept.
_LARGEST_ASPECT = 16
# Folded into an example's seed for RandAugment. Crops fold in their small numbers.
_RANDAUGMENT_SEED = 1 << 20
# ASCII punctuation, as string.punctuation: what SigLIP's canonicalisation removes.
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
# White space as Python's `re` has it, by which SigLIP's is squeezed; RE2's own is that of ASCII.
_WHITE_SPACE = (
    r"[\s\x0b\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
    r"\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
)
# A code point that is no character, in place of NUL, at which lower-casing would cut a text.
_NUL, _NO_CHARACTER = "\x00", "\U0010ffff"


def decode_image(
    encoded: tf.Tensor,
    *,
    max_pixels: int,
    crop: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """Decodes a JPEG or PNG, turned upright; transparent pixels are composed on white.

    The header is read and checked before anything is decoded: 631 bytes of JPEG may otherwise claim
    half a gigabyte.

    Args:
        encoded: A scalar string.
        max_pixels: Largest width times height that is decoded.
        crop: Returns the part to keep, `(top, left, height, width)`, of an upright image of
            `(height, width)`, all int32; of a JPEG, no other part is decoded.

    Returns:
        Shape `(height, width, 3)`, uint8.

    Raises:
        tf.errors.InvalidArgumentError: If the bytes are no JPEG or PNG, are damaged, or the image
            has too many pixels.
    """
    # Shorter bytes are filled with zeros, not refused: that error would quote them, and what is no
    # UTF-8 cannot become a Python exception.
    header = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_PNG_HEADER_BYTES)
    is_jpeg, is_png = (
        tf.reduce_all(tf.equal(header[: len(magic)], tf.constant(list(magic), tf.uint8)))
        for magic in (_JPEG_MAGIC, _PNG_MAGIC)
    )
    is_png &= tf.strings.length(encoded) >= _PNG_HEADER_BYTES
    known = tf.debugging.Assert(is_jpeg | is_png, ["only JPEG and PNG are accepted"])

    with tf.control_dependencies([known] if known is not None else []):
        turn = orientation.read(tf.identity(encoded), is_jpeg)

    def _checked(sides: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the bytes, which no one gets before the check, and what to decode of them."""
        small = tf.debugging.Assert(
            tf.reduce_prod(sides) <= max_pixels, ["image has too many pixels"]
        )
        with tf.control_dependencies([small] if small is not None else []):
            window = None
            if crop is not None:
                sides = orientation.upright_sides(tf.cast(sides, tf.int32), turn)
                window = orientation.stored_window(crop(sides), sides, turn)
            return tf.identity(encoded), window

    def _jpeg() -> tf.Tensor:
        return _decode_jpeg(*_checked(tf.image.extract_jpeg_shape(encoded, tf.int64)[:2]))

    def _png() -> tf.Tensor:
        # Width and height are big-endian. int64, since a PNG may claim 2**31 - 1 a side, and lie.
        sides = tf.cast(tf.reshape(header[16:24], (2, 4)), tf.int64) * [1 << 24, 1 << 16, 1 << 8, 1]
        checked, window = _checked(tf.reverse(tf.reduce_sum(sides, axis=1), axis=[0]))
        return _cropped(_decode_png(checked, header), window)

    with tf.control_dependencies([known] if known is not None else []):
        image = orientation.upright(tf.cond(is_jpeg, _jpeg, _png), turn)
    image.set_shape((None, None, 3))
    return image


def _decode_jpeg(encoded: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    options = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
    if window is None:
        return tf.io.decode_jpeg(encoded, **options)
    return tf.image.decode_and_crop_jpeg(encoded, window, **options)


def _cropped(image: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    if window is None:
        return image
    return tf.slice(image, tf.concat([window[:2], [0]], 0), tf.concat([window[2:], [3]], 0))


def _decode_png(encoded: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    depth, color_type = header[24], header[25]
    is_palette = tf.equal(color_type, _PNG_PALETTE)
    # The name of the chunk may stand in pixels too: then all is opaque on white, to the same end.
    named = tf.strings.regex_full_match(encoded, _PNG_TRANSPARENCY)
    transparent = named | tf.not_equal(color_type & _PNG_ALPHA, 0)
    # Asked for four channels, the decoder gives opaque images of fewer than 8 bits an alpha of
    # 2**bits - 1 instead of 255. Palettes therefore decode to what they have, three channels or
    # four, and grey of few bits is taken as opaque.
    transparent &= is_palette | (depth >= 8)
    return tf.cond(
        transparent,
        lambda: tf.cond(
            is_palette,
            lambda: _on_white_if_transparent(tf.io.decode_png(encoded, channels=0)),
            lambda: _on_white(tf.io.decode_png(encoded, channels=4)),
        ),
        lambda: tf.io.decode_png(encoded, channels=3),
    )


def _on_white_if_transparent(image: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.equal(tf.shape(image)[-1], 4), lambda: _on_white(image), lambda: image)


def _on_white(rgba: tf.Tensor) -> tf.Tensor:
    # 16 bits hold every intermediate, 255 * 255 + 127 at most, at half the memory of 32.
    color, alpha = tf.split(tf.cast(rgba, tf.uint16), (3, 1), axis=-1)
    mixed = color * alpha + 255 * (255 - alpha)
    return tf.cast((mixed + 127) // 255, tf.uint8)


def resize_image(image: tf.Tensor, config: ImageTowerConfig) -> tf.Tensor:
    """Resizes `(height, width, 3)` uint8 to the tower's square, as its configuration says.

    By default the aspect ratio is ignored, and it is bilinear without antialiasing, then truncated
    back to uint8: the contract that released SigLIP models were trained with. With
    `resampler=pillow` every level is the one that Pillow gives.

    Returns:
        Shape `(size, size, 3)`, uint8.
    """
    size = tf.constant([config.size, config.size], tf.int64)
    side = config.resized_side
    if config.resize == "squash":
        scaled = tf.constant([side, side], tf.int64)
    else:
        image = image if config.resampler == "pillow" else _without_far_ends(image)
        scaled = _scaled(tf.shape(image, tf.int64)[:2], side, config)
    # What is resized to the size of the tower already is not cut.
    whole = config.resize == "squash" and side == config.size
    begin = (scaled - size) // 2
    if config.resampler == "pillow":
        window = None if whole else tf.concat([begin, size], 0)
        return resampling.resize(image, scaled, config.interpolation, window=window)
    image = _resized(image, tf.cast(scaled, tf.int32), config)
    if whole:
        return image
    return tf.slice(image, tf.concat([begin, [0]], 0), [config.size, config.size, 3])


def _without_far_ends(image: tf.Tensor) -> tf.Tensor:
    """Returns the middle of a picture that is so long that resizing all of it would fill memory."""
    sides = tf.shape(image)[:2]
    kept = tf.minimum(sides, _LARGEST_ASPECT * tf.reduce_min(sides))
    begin = (sides - kept) // 2
    return tf.slice(image, tf.concat([begin, [0]], 0), tf.concat([kept, [3]], 0))


def _scaled(sides: tf.Tensor, side: int, config: ImageTowerConfig) -> tf.Tensor:
    """Returns the sides, int64, of a picture whose shorter one becomes `side`."""
    if config.resize == "crop":
        return sides * side // tf.reduce_min(sides)
    # In float32, as in big_vision, where it decides what is half.
    factor = np.float32(side) / tf.cast(tf.reduce_min(sides), tf.float32)
    return tf.cast(tf.round(tf.cast(sides, tf.float32) * factor), tf.int64)


def _resized(image: tf.Tensor, size: tf.Tensor, config: ImageTowerConfig) -> tf.Tensor:
    if config.interpolation == "bilinear" and not config.antialias:
        # TensorFlow's kernel takes a third less time to read floats than to read bytes, to the same
        # result. Of a large image the floats would take more than that, and memory.
        resized = tf.cond(
            tf.reduce_prod(tf.shape(image)[:2]) <= _FLOAT_PIXELS,
            lambda: tf.image.resize(tf.cast(image, tf.float32), size),
            lambda: tf.image.resize(image, size),
        )
        return tf.cast(resized, tf.uint8)
    resized = tf.image.resize(image, size, method=config.interpolation, antialias=config.antialias)
    if config.interpolation != "bilinear":
        # Filters other than bilinear overshoot the levels of the picture.
        resized = tf.clip_by_value(resized, 0.0, 255.0)
    return tf.cast(resized, tf.uint8)


def load_image(encoded: tf.Tensor, config: ImageTowerConfig, *, max_pixels: int) -> tf.Tensor:
    """Decodes and resizes one encoded image to `(size, size, 3)`, uint8."""
    image = resize_image(decode_image(encoded, max_pixels=max_pixels), config)
    return tf.ensure_shape(image, (config.size, config.size, 3))


def load_views(
    encoded: tf.Tensor, views: Mapping[str, View], data: DataConfig, *, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Loads an image as `load_image` does, with the random changes of training.

    Args:
        encoded: JPEG or PNG bytes, a scalar string.
        views: What is asked for, by name; views of one crop number share crop, flip and what
            RandAugment draws.
        data: Says what is changed; nothing is by default.
        seed: Two integers; the same give the same pictures.

    Returns:
        Pictures by the views' names, `(size, size, 3)`, uint8.

    Raises:
        ValueError: If views of one crop would be augmented differently.
    """
    _check_sizes(views, data)
    loaded = {}
    for crop in sorted({view.crop for view in views.values()}):
        towers = {name: view.tower for name, view in views.items() if view.crop == crop}
        own = tf.random.experimental.stateless_fold_in(seed, crop) if crop else seed
        loaded |= _load_augmented(encoded, towers, data, seed=own)
    return loaded


def _check_sizes(views: Mapping[str, View], data: DataConfig) -> None:
    """Refuses views of one crop and several sizes, of which the same pixels are not the same."""
    if data.randaugment is None or data.randaugment.scale_pixels:
        return
    for crop in {view.crop for view in views.values()}:
        sizes = {name: view.tower.size for name, view in views.items() if view.crop == crop}
        if len(set(sizes.values())) > 1:
            received = ", ".join(f"{name} of {size} pixels" for name, size in sizes.items())
            raise ValueError(
                "data.randaugment.scale_pixels must be true where one crop becomes pictures of "
                "several sizes, such as a teacher's: the same number of pixels would move each by "
                f"another share. Received: data.randaugment.scale_pixels=False, {received}"
            )


def _load_augmented(
    encoded: tf.Tensor,
    towers: Mapping[str, ImageTowerConfig],
    data: DataConfig,
    *,
    seed: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Returns an image with one crop, flip and RandAugment, by tower."""
    crop = None
    if data.crop_min_area is not None:
        crop = functools.partial(_random_crop, min_area=data.crop_min_area, seed=seed)
        towers = {name: _of_random_crops(tower) for name, tower in towers.items()}
    image = decode_image(encoded, max_pixels=data.max_image_pixels, crop=crop)
    # Seed + 1, so that the flip is independent of the crop.
    mirrored = tf.random.stateless_uniform([], seed + 1) < 0.5

    def resized(tower: ImageTowerConfig) -> tf.Tensor:
        pixels = tf.ensure_shape(resize_image(image, tower), (tower.size, tower.size, 3))
        if data.flip:
            pixels = tf.cond(mirrored, lambda: tf.reverse(pixels, axis=[1]), lambda: pixels)
        if data.randaugment is not None:
            drawn = tf.random.experimental.stateless_fold_in(seed, _RANDAUGMENT_SEED)
            pixels = randaugment.augment(pixels, data.randaugment, seed=drawn)
        return pixels

    return {name: resized(tower) for name, tower in towers.items()}


def _of_random_crops(tower: ImageTowerConfig) -> ImageTowerConfig:
    """Returns a tower that resizes to its square at once, since a random crop is cut already."""
    interpolation = "bilinear" if tower.interpolation == "area" else tower.interpolation
    return dataclasses.replace(
        tower, resize="squash", resize_side=None, resize_ratio=1.0, interpolation=interpolation
    )


def _random_crop(shape: tf.Tensor, *, min_area: float, seed: tf.Tensor) -> tf.Tensor:
    """Returns `(top, left, height, width)` of a crop of an image of `(height, width)`."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([shape, [3]], 0),
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(min_area, 1.0),
    )
    return tf.concat([begin[:2], size[:2]], 0)


def to_model_range(image: tf.Tensor, config: ImageTowerConfig) -> tf.Tensor:
    """Maps uint8 pixels to what the tower reads, float32: [-1, 1] by default."""
    scale = [1.0 / (255.0 * std) for std in config.std]
    offset = [mean / std for mean, std in zip(config.mean, config.std, strict=True)]
    return tf.cast(image, tf.float32) * scale - offset


def canonicalize(text: tf.Tensor, config: TextTowerConfig) -> tf.Tensor:
    """Lower-cases, removes punctuation and squeezes white space, whichever the configuration says.

    Args:
        text: Strings of any shape; invalid UTF-8 becomes the replacement character.
    """
    text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
    if config.lowercase:
        text = tf.strings.regex_replace(text, _NUL, _NO_CHARACTER)
        text = tf.strings.lower(text, encoding="utf-8")
        text = tf.strings.regex_replace(text, _NO_CHARACTER, _NUL)
    if config.strip_punctuation:
        text = tf.strings.regex_replace(text, _PUNCTUATION, "")
    if config.squeeze_whitespace:
        text = tf.strings.strip(tf.strings.regex_replace(text, _WHITE_SPACE, " "))
    return text


class Tokenizer(tf.Module):
    """From texts to tokens, with SigLIP's padding.

    Text is cut, the end of text follows, and the rest is filled with the padding ("sticky" end of
    text, arXiv 2303.15343; big_vision `pp/ops_text.py`). By default that is the same token, so that
    the last one is always the end of text.
    """

    def __init__(self, vocabulary: bytes, config: TextTowerConfig):
        """Loads a vocabulary.

        Args:
            vocabulary: A vocabulary as `vocabularies.load` takes it, with the pieces of the
                configuration.
            config: The text tower, for the length, the canonicalisation and the table's size.

        Raises:
            ValueError: If the vocabulary has more pieces than the tower has rows, or not those that
                begin, end and fill texts.
        """
        super().__init__()
        self.config = config
        self.pieces = vocabularies.load(vocabulary)
        if self.pieces.size > config.vocabulary_size:
            raise ValueError(
                "text.vocabulary_size must be at least the vocabulary's size. Received: "
                f"text.vocabulary_size={config.vocabulary_size}, pieces={self.pieces.size}"
            )
        starts = config.start_piece is not None
        self.start_ids = [self._id("text.start_piece", config.start_piece)] if starts else []
        self.end_id = self._id("text.end_piece", config.end_piece)
        self.pad_id = self._id("text.pad_piece", config.pad_piece)

    def _id(self, key: str, piece: str | None) -> int:
        number = self.pieces.id_of(str(piece))
        if number is None:
            raise ValueError(
                f"The vocabulary must have the piece that {key} names. Received: {key}={piece!r}"
            )
        return number

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        """Returns token ids of shape `(batch, length)`, int32, for texts of shape `(batch,)`."""
        length = self.config.length
        room = length - 1 - len(self.start_ids)
        ids: Any = self.pieces.tokenize(canonicalize(text, self.config), room)
        rows = ids.nrows()
        starts = [tf.fill((rows, 1), number) for number in self.start_ids]
        ids = tf.concat([*starts, ids, tf.fill((rows, 1), self.end_id)], axis=1)
        return ids.to_tensor(default_value=self.pad_id, shape=(None, length))

    def texts_of(self, ids: tf.Tensor) -> list[str]:
        """Returns what is left of texts after tokens `(batch, length)` have been made of them."""
        texts = []
        for row in ids.numpy().tolist():
            row = row[len(self.start_ids) :]
            row = row[: row.index(self.end_id)] if self.end_id in row else row
            texts.append(self.pieces.text_of(row))
        return texts
