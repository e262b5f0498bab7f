"""AugReg's presets of augmentation, by name."""

from typing import Any

from sigline.schemas import suggestions
from sigline.trainer.config.data import RandAugmentConfig

_LAYERS = 2
# p of mixup, and the magnitude of RandAugment; those of big_vision `configs/vit_i1k.py`. `light1`
# is not `none`: see `RandAugmentConfig.magnitude`.
_PRESETS: dict[str, tuple[float, int | None]] = {
    "none": (0.0, None),
    "light1": (0.0, 0),
    "light2": (0.2, 10),
    "medium1": (0.2, 15),
    "medium2": (0.5, 15),
    "strong1": (0.5, 20),
    "strong2": (0.8, 20),
}


def names() -> list[str]:
    """Returns the names of all presets, from the weakest."""
    return list(_PRESETS)


def augreg(name: str) -> dict[str, Any]:
    """Returns `mixup` and `randaugment` of a preset of AugReg.

    Random crops and flips, which all presets have, are not among them.

    Example:
        `DataConfig(crop_min_area=0.05, flip=True, **augmentation.augreg("medium2"))`

    Raises:
        ValueError: If there is no such preset; the message lists those that there are.

    Source: arXiv 2106.10270, section 3.2.
    """
    if name not in _PRESETS:
        raise ValueError(
            f"Unknown preset of augmentation. Received: name={name!r}. Known presets: "
            f"{', '.join(_PRESETS)}.{suggestions.did_you_mean(name, _PRESETS)}"
        )
    mixup, magnitude = _PRESETS[name]
    randaugment = None if magnitude is None else RandAugmentConfig(_LAYERS, magnitude)
    return {"mixup": mixup, "randaugment": randaugment}
