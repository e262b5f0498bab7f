"""`preprocessor_config.json`, by which `transformers` makes pixels as an image tower reads them."""

from typing import Any

from sigline.trainer.config import ImageTowerConfig

FILE = "preprocessor_config.json"

# Pillow's numbers of filters.
_FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def described(image: ImageTowerConfig, kind: str) -> dict[str, Any]:
    """Returns the content of the file.

    Args:
        image: The image tower.
        kind: The model's `model_type`: `siglip`, `clip`, `vit` or `deit`.

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
    processors = {"siglip": "SiglipProcessor", "clip": "CLIPProcessor"}
    return {
        "image_processor_type": _class_for(kind, crop=crop, cut=cut),
        # Models of images alone have no processor of texts beside it.
        **({"processor_class": processors[kind]} if kind in processors else {}),
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


def _class_for(kind: str, *, crop: bool, cut: bool) -> str:
    """Returns the class of the image processor; each serves every model.

    Args:
        kind: The model's `model_type`.
        crop: Whether the aspect is kept.
        cut: Whether the middle is cut out.
    """
    if crop:
        # Only CLIP's keeps the aspect.
        return "CLIPImageProcessor"
    if kind in ("siglip", "clip"):
        return "SiglipImageProcessor"
    # Before version 5 the class of ViT never cuts, whatever its file says.
    return "DeiTImageProcessor" if cut else "ViTImageProcessor"
