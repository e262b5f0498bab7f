"""What a trained model can do: one file for each signature, and the table of them."""

from collections.abc import Callable
from typing import Any

from sigline.schemas import signatures
from sigline.trainer.export.capabilities import (
    class_logits,
    classify,
    embed_image,
    embed_image_safe,
    embed_text,
    similarity,
)
from sigline.trainer.export.served import Served

# Each returns its signature's function, or None for a model that cannot do it. Those of images take
# a grid, too: patches along a side.
CAPABILITIES: dict[str, Callable[..., Any]] = {
    module.NAME: module.make
    for module in (embed_image, embed_image_safe, embed_text, similarity, classify, class_logits)
}


def signatures_of(served: Served) -> dict[str, Any]:
    """Returns the signatures of a model by name, those that see images at each of its grids."""
    image = served.config.image
    functions = {name: make(served) for name, make in CAPABILITIES.items()}
    for grid in image.grids:
        for name in sorted(signatures.OF_IMAGES):
            at_grid = functions[name] if grid == image.grid else CAPABILITIES[name](served, grid)
            functions[signatures.at_grid(name, grid)] = at_grid
    return {name: function for name, function in functions.items() if function is not None}
