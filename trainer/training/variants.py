"""Which variant a step is: of the model, and of one of the objectives."""

import hashlib
import itertools
from typing import Any

from sigline.trainer.objectives.base import LOSS, Tensors
from sigline.trainer.training.calls import Models, Variant


def of_step(models: Models, number: int) -> Variant:
    """Returns which variant a step is, the same on all replicas and after a resume.

    Each variant of the model comes with each of the objective's, all equally often.

    Args:
        models: What is trained, and what is learnt; at most one objective has several variants.
        number: The step, counted from one.

    Raises:
        ValueError: If several objectives have variants.
    """
    several = [item for item in models.objectives if len(item.variants) > 1]
    if len(several) > 1:
        names = ", ".join(item.name for item in several)
        raise ValueError(f"Only one objective may have variants of a step. Received: {names}")
    # Images that are embedded before are so by the default variant, and the tower does not run.
    of_model = (None,) if models.embedded else models.model.image.variants
    of_objective = several[0].variants if several else (None,)
    every = list(itertools.product(of_model, of_objective))
    return Variant(*every[draw(models.config.seed, number, len(every))])


def draw(seed: int, number: int, count: int) -> int:
    """Returns a number below `count` for a seed and a step, all of them equally often.

    NumPy may change what its generators draw between versions, after which a run would not resume
    as it began; a hash stays what it is.
    """
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def loss_by_variant(models: Models, variant: Variant, scalars: Tensors) -> dict[str, Any]:
    """Returns the loss once more, by the name of the model's variant; nothing without variants.

    Losses of several variants differ by more than they change from step to step, so each is a curve
    of its own, such as `loss/grid=7`.
    """
    if variant.model is None:
        return {}
    return {f"{LOSS}/{models.model.image.variant_name}={variant.model}": scalars[LOSS]}
