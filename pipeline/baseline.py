"""Finds the model that a candidate is compared with."""

from tfx.components.evaluator import constants
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.types.artifact import Artifact

MODEL = "model"
BLESSING = "model_blessing"
CANDIDATE = "candidate"


class LastOtherBlessedModel(ResolverStrategy):
    """Resolves the newest blessed model that is not the candidate itself.

    TFX's LatestBlessedModelStrategy returns the candidate as soon as it is blessed: the next run,
    with nothing changed, then compares the model with itself, and no cache ever answers.

    Inputs: `model` and `model_blessing`, all of the pipeline's, and `candidate`, this run's model.
    """

    def resolve_artifacts(
        self, store, input_dict: dict[str, list[Artifact]]
    ) -> dict[str, list[Artifact]]:
        """Returns the inputs with `model` and `model_blessing` cut to the one found, or to none."""
        del store
        candidates = {artifact.id for artifact in input_dict[CANDIDATE]}
        blessings = {
            item.get_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY): item
            for item in input_dict[BLESSING]
            if item.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == 1
        }
        blessed = [
            model
            for model in input_dict[MODEL]
            if model.id in blessings and model.id not in candidates
        ]
        if not blessed:
            return input_dict | {MODEL: [], BLESSING: []}
        newest = max(blessed, key=lambda model: model.id)
        return input_dict | {MODEL: [newest], BLESSING: [blessings[newest.id]]}
