"""The table of objectives, and those of a run."""

from collections.abc import Callable, Mapping, Sequence

import keras

from sigline.trainer.config import ClassifyConfig, DistillConfig, PairsConfig
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import base, classify, distill, pairs

# What makes an objective of a configuration, by its type.
OBJECTIVES: Mapping[type, Callable[..., base.Objective]] = {
    PairsConfig: pairs.Pairs,
    DistillConfig: distill.make,
    ClassifyConfig: classify.Classify,
}


def make(context: base.Context) -> tuple[base.Objective, ...]:
    """Returns a run's objectives; in the strategy's scope, since they may have variables."""
    with two_tower.seeded(context.config.seed + 1):
        return tuple(OBJECTIVES[type(x)](x, context) for x in context.config.objectives)


def named_parameters(objectives: Sequence[base.Objective]) -> dict[str, keras.Variable]:
    """Returns the variables of the objectives' own layers, below `objectives/NAME/`."""
    variables = {}
    for objective in objectives:
        if objective.layer is not None:
            prefix = f"{objective.layer.name}/"
            for item in objective.layer.variables:
                path = item.path.removeprefix(prefix)
                variables[f"objectives/{objective.name}/{path}"] = item
    return variables
