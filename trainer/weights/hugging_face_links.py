"""Links of layers that all models of `transformers` have."""

from sigline.trainer.config import ImageTowerConfig
from sigline.trainer.weights.links import Link, same, transposed


def dense(theirs: str, ours: str, *, bias: bool = True) -> list[Link]:
    """Returns the links of a projection `(outputs, inputs)`, with a bias or without."""
    kernel = transposed(f"{theirs}.weight", f"{ours}/kernel")
    return [kernel, same(f"{theirs}.bias", f"{ours}/bias")] if bias else [kernel]


def layer_norm(theirs: str, ours: str) -> list[Link]:
    """Returns the links of a layer norm."""
    return [same(f"{theirs}.weight", f"{ours}/gamma"), same(f"{theirs}.bias", f"{ours}/beta")]


def patches(theirs: str, image: ImageTowerConfig) -> Link:
    """Links the kernel of a convolution `(width, 3, patch, patch)`, ours over rows of pixels."""
    patch, width = image.patch, image.width
    return Link(
        (theirs,),
        ("image/embedding/kernel",),
        lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, width),),
        lambda x: (x.reshape(patch, patch, 3, width).transpose(3, 2, 0, 1),),
    )
