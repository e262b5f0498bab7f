"""Pixels as the image processors of `transformers` make them, from `preprocessor_config.json`.

What a file leaves out is its class's default, as there. What cannot be followed is refused: a model
that gets other pixels than it was trained with answers wrongly without a word.
"""

import json
import math
from pathlib import Path
from typing import Any

PROCESSOR_FILE = "preprocessor_config.json"
# Newer versions keep the image processor's settings in here, and look here first.
COMBINED_FILE = "processor_config.json"
_COMBINED_KEY = "image_processor"

# Pillow's numbers of filters. Its nearest neighbour, 0, is not offered.
_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_LEVELS = 255
# What decides pixels in an `ImageTowerConfig`, beside the size.
FIELDS = (
    *("resize", "resize_side", "resize_ratio", "interpolation", "antialias", "resampler"),
    *("mean", "std"),
)

_COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_pad": False,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,
    "rescale_factor": 1 / _LEVELS,
    "antialias": True,
}
# Defaults by class. None stands for the side that the tower has.
_CLASSES: dict[str, dict[str, Any]] = {
    "SiglipImageProcessor": _COMMON
    | {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "size": None, "crop_size": None},
    "ViTImageProcessor": _COMMON
    | {
        "image_mean": (0.5,) * 3,
        "image_std": (0.5,) * 3,
        "resample": 2,
        "size": None,
        "crop_size": None,
    },
    # The mean and deviation of the released DeiTs are in their files, not in the class.
    "DeiTImageProcessor": _COMMON
    | {
        "image_mean": (0.5,) * 3,
        "image_std": (0.5,) * 3,
        "do_center_crop": True,
        "size": None,
        "crop_size": None,
    },
    "CLIPImageProcessor": _COMMON
    | {
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
        "do_center_crop": True,
        "size": None,
        "crop_size": None,
    },
}
_DEFAULT_CLASSES = {
    "siglip": "SiglipImageProcessor",
    "clip": "CLIPImageProcessor",
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
}
# Classes to which a single number is both sides of a square.
_SQUARING = ("ViTImageProcessor", "DeiTImageProcessor")
# Former names of the classes.
_OLD_CLASSES = {
    "SiglipFeatureExtractor": "SiglipImageProcessor",
    "CLIPFeatureExtractor": "CLIPImageProcessor",
    "ViTFeatureExtractor": "ViTImageProcessor",
    "DeiTFeatureExtractor": "DeiTImageProcessor",
}
_NAFLEX = "Siglip2ImageProcessor"


def pixels(folder: Path, kind: str, size: int) -> tuple[dict[str, Any], list[str]]:
    """Returns how a folder of Hugging Face wants pixels.

    Args:
        folder: The folder.
        kind: Its `model_type`: `siglip`, `clip`, `vit` or `deit`.
        size: Side of the square that the image tower takes, in pixels.

    Returns:
        Fields of `ImageTowerConfig` by name, and what was assumed.

    Raises:
        ValueError: If the processor does what the image tower cannot take.
    """
    path, described = _read(folder)
    if path is None:
        name = _DEFAULT_CLASSES[kind]
        note = f"pixels as of {name}: there is no {PROCESSOR_FILE}"
        return fields({}, kind, size), [note]
    try:
        return fields(described, kind, size), []
    except ValueError as error:
        raise ValueError(f"{path} cannot be followed: {error}") from error


def _read(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Returns the file that describes the processor, and what it says; None if there is none."""
    for name, key in ((COMBINED_FILE, _COMBINED_KEY), (PROCESSOR_FILE, None)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            described = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} must hold JSON: {error}") from error
        if key is not None:
            described = described.get(key) if isinstance(described, dict) else None
            if described is None:
                continue
        if not isinstance(described, dict):
            raise ValueError(f"{path} must hold an object. Received: {described!r}")
        return path, described
    return None, {}


def fields(described: dict[str, Any], kind: str, size: int) -> dict[str, Any]:
    """Returns the fields of `ImageTowerConfig` that a description asks for; see `pixels`."""
    name = _class_of(described, kind)
    stated = {key: value for key, value in described.items() if value is not None}
    settings = _CLASSES[name] | stated
    if not settings["do_resize"]:
        raise ValueError("do_resize must be true. Received: do_resize=False")
    if settings["do_pad"]:
        raise ValueError("do_pad must be false. Received: do_pad=True")
    return {
        **_resizing(settings, name, size),
        **_filter(settings),
        **_scaling(settings),
    }


def _class_of(described: dict[str, Any], kind: str) -> str:
    received = described.get("image_processor_type") or described.get("feature_extractor_type")
    name = str(received or _DEFAULT_CLASSES[kind]).removesuffix("Fast").removesuffix("Pil")
    name = _OLD_CLASSES.get(name, name)
    if name == _NAFLEX or "max_num_patches" in described:
        raise ValueError(
            "images of any aspect (NaFlex) cannot be read, only squares. "
            f"Received: image_processor_type={received!r}"
        )
    if name not in _CLASSES:
        raise ValueError(
            f"image_processor_type must be one of {', '.join(_CLASSES)}, or their Fast forms. "
            f"Received: image_processor_type={received!r}"
        )
    return name


def _resizing(settings: dict[str, Any], name: str, size: int) -> dict[str, Any]:
    """Returns what becomes of the sides."""
    cut = bool(settings["do_center_crop"])
    if cut:
        height, width = _rectangle("crop_size", settings["crop_size"], size)
        if not height == width == size:
            raise ValueError(
                f"crop_size must be the square of the model's image_size={size}. Received: "
                f"crop_size={settings['crop_size']}"
            )
    asked = settings["size"]
    shorter = _shorter_side(asked, name, size, cut)
    if shorter is not None:
        resize, side = "crop", shorter
        if not cut:
            raise ValueError(
                "size must give height and width without do_center_crop: pictures would not be "
                f"square. Received: size={asked}, do_center_crop={settings['do_center_crop']}"
            )
    else:
        height, width = _rectangle("size", asked, _default_side(name, size))
        resize, side = "squash", height
        if height != width:
            raise ValueError(f"size must be a square. Received: size={asked}")
    if side < size or (side != size and not cut):
        raise ValueError(
            f"size must be the model's image_size={size}, or with do_center_crop at least that. "
            f"Received: size={asked}"
        )
    return {
        "resize": resize,
        "resize_side": None if side == size else side,
        "resize_ratio": 1.0,
    }


def _default_side(name: str, size: int) -> int:
    """Returns the side that a class resizes to if its file is silent, for a tower of `size`."""
    # 256 for 224; 438 for 384, as released DeiTs of that size have it.
    return size * 256 // 224 if name == "DeiTImageProcessor" else size


def _shorter_side(asked: Any, name: str, size: int, cut: bool) -> int | None:
    """Returns what the shorter side becomes, with the aspect kept; None if the aspect is not."""
    if asked is None:
        return size if name == "CLIPImageProcessor" else None
    if isinstance(asked, dict):
        if "longest_edge" in asked:
            raise ValueError(f"size must not name longest_edge. Received: size={asked}")
        edge = asked.get("shortest_edge")
        return None if edge is None else _side("size.shortest_edge", edge)
    # A single number is the shorter side. SigLIP's class, which cuts nothing, then only takes
    # squares, whose sides all are that.
    single = isinstance(asked, int) and (cut or name != "SiglipImageProcessor")
    single = single and name not in _SQUARING
    return _side("size", asked) if single else None


def _rectangle(key: str, value: Any, size: int) -> tuple[int, int]:
    if value is None:
        return size, size
    if isinstance(value, dict) and {"height", "width"} <= set(value):
        return _side(f"{key}.height", value["height"]), _side(f"{key}.width", value["width"])
    if isinstance(value, list) and len(value) == 2:
        return _side(f"{key}[0]", value[0]), _side(f"{key}[1]", value[1])
    if isinstance(value, int):
        return _side(key, value), _side(key, value)
    raise ValueError(f"{key} must be a number, or give height and width. Received: {key}={value}")


def _side(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} must be a positive whole number. Received: {key}={value!r}")
    return value


def _filter(settings: dict[str, Any]) -> dict[str, Any]:
    resample, antialias = settings["resample"], settings["antialias"]
    if isinstance(resample, bool) or resample not in _FILTERS:
        known = ", ".join(f"{number} ({name})" for number, name in _FILTERS.items())
        raise ValueError(f"resample must be one of {known}. Received: resample={resample!r}")
    interpolation = _FILTERS[resample]
    if antialias:
        return {"interpolation": interpolation, "antialias": True, "resampler": "pillow"}
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(
            "antialias must be true with any resample but 2 (bilinear) and 3 (bicubic). "
            f"Received: antialias={antialias}, resample={resample}"
        )
    return {"interpolation": interpolation, "antialias": False, "resampler": "tensorflow"}


def _scaling(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns mean and deviation of pixels in [0, 1], whatever levels are multiplied by there."""
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1.0
    if not _is_number(factor) or factor <= 0:
        raise ValueError(f"rescale_factor must be positive. Received: rescale_factor={factor!r}")
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings["do_normalize"]:
        mean = _channels("image_mean", settings["image_mean"])
        std = _channels("image_std", settings["image_std"])
        if min(std) <= 0:
            raise ValueError(f"image_std must be positive. Received: image_std={list(std)}")
    # 1 / 255 is often written with fewer digits; then nothing is to be converted.
    unit = factor * _LEVELS
    if math.isclose(unit, 1.0, rel_tol=1e-6):
        return {"mean": mean, "std": std}
    return {"mean": tuple(x / unit for x in mean), "std": tuple(x / unit for x in std)}


def _channels(key: str, value: Any) -> tuple[float, ...]:
    values = (value,) * 3 if _is_number(value) else value
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError(f"{key} must be a number for each of 3 channels. Received: {key}={value}")
    return tuple(float(x) for x in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
