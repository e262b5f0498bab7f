"""`preprocessor_config.json`, by which `transformers` makes pixels as an image tower reads them."""

from typing import Any

from sigline.trainer.config import ImageTowerConfig

FILE = "preprocessor_config.json"

# Pillow's numbers of filters.
_FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def described(image: ImageTowerConfig, *, clip: bool) -> dict[str, Any]:
    """Returns the content of the file.

    Args:
        image: The image tower.
        clip: Whether the model is CLIP's.

    Raises:
        ValueError: If no processor resizes as the tower does.
    """
    if image.resize == "crop_rounded" or image.interpolation not in _FILTERS:
        raise ValueError(
            "transformers has no processor that rounds sides or takes means over areas. Received: "
            f"image.resize={image.resize!r}, image.interpolation={image.interpolation!r}"
        )
    side = image.resized_side
    square = {"height": image.size, "width": image.size}
    crop = image.resize == "crop"
    cut = crop or side != image.size
    return {
        # Only CLIP's image processor keeps the aspect. Both serve either model.
        "image_processor_type": "CLIPImageProcessor" if crop else "SiglipImageProcessor",
        "processor_class": "CLIPProcessor" if clip else "SiglipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if crop else {"height": side, "width": side},
        "resample": _FILTERS[image.interpolation],
        "antialias": image.antialias,
        "do_center_crop": cut,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
