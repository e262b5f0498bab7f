"""Published sizes of transformer towers, by name."""

from typing import Any

# Width, depth, hidden width of the MLPs, heads; those of big_vision `models/vit.py`, and of arXiv
# 2302.05442.
_SIZES = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "G-opt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
    "22B": (6144, 48, 24576, 48),
}


def names() -> list[str]:
    """Returns the names of all sizes, from the smallest."""
    return list(_SIZES)


def sizes(name: str) -> dict[str, Any]:
    """Returns `width`, `depth`, `mlp_dim` and `num_heads` of a tower.

    Example:
        `ImageTowerConfig(size=384, patch=14, **sizes.sizes("So400m"))`

    Raises:
        ValueError: If there is no such size; the message lists those that there are.
    """
    if name not in _SIZES:
        raise ValueError(
            f"Unknown size of a tower. Received: name={name!r}. Known sizes: {', '.join(_SIZES)}"
        )
    return dict(zip(("width", "depth", "mlp_dim", "num_heads"), _SIZES[name], strict=True))
