"""The infra check component: blesses only a candidate that was served and passed its probes."""

import itertools
import json
import os

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import (
    Examples,
    InfraBlessing,
    Model,
    ModelBlessing,
    ModelRun,
)
from tfx.utils import path_utils

from sigline.schemas import artifacts, record, signatures
from sigline.schemas.gate import Gate

_NUM_REQUESTS = 16


@component
def CheckServing(
    model: InputArtifact[Model],
    examples: InputArtifact[Examples],
    model_blessing: InputArtifact[ModelBlessing],
    model_run: InputArtifact[ModelRun],
    blessing: OutputArtifact[InfraBlessing],
    gate: Parameter[str],
    max_memory_mib: Parameter[float],
    max_latency_ms: Parameter[float],
    code_digest: Parameter[str],
):
    """Serves the candidate in processes of its own and sends it records of the eval split.

    The answers must be those of the model in the trainer, as close as the gate asks. No process may
    hold more than `max_memory_mib`, nor a lone request take more than `max_latency_ms` at its best
    (0 for no limit). A model that the evaluation refused is not checked. Beside the blessing lie
    the requests that the published model is warmed up by.
    """
    del code_digest
    from sigline.schemas import tf_example
    from sigline.serving.checks import infra_check
    from sigline.trainer.inputs import shards

    if model_blessing.get_int_custom_property(artifacts.BLESSED_PROPERTY) != 1:
        outcome, blessed = {"skipped": "the evaluation did not bless the model"}, False
    else:
        paths = shards.shard_files(artifact_utils.get_split_uri([examples], record.EVAL_SPLIT))
        serialized = itertools.chain.from_iterable(map(tf_example.read_shard, paths))
        records = [tf_example.decode(x) for x in itertools.islice(serialized, _NUM_REQUESTS)]
        try:
            checked = infra_check.check_serving(
                path_utils.serving_model_path(model.uri),
                [item.image for item in records],
                [item.text[0] for item in records if item.text],
                golden=_golden(records, model_run.uri, Gate.from_json(gate).max_parity_difference),
                max_memory_mib=max_memory_mib or None,
                max_latency_ms=max_latency_ms or None,
            )
            outcome, blessed = checked.figures, True
            with open(os.path.join(blessing.uri, signatures.WARMUP_FILE), "wb") as handle:
                handle.write(checked.warm_up)
        except infra_check.InfraError as error:
            # Only what is wrong with the model: a refusal is cached, a busy machine passes.
            outcome, blessed = {"error": str(error)}, False
    with open(os.path.join(blessing.uri, artifacts.INFRA_REPORT_FILE), "w") as handle:
        json.dump(outcome, handle, indent=1)
    blessing.set_int_custom_property(artifacts.BLESSED_PROPERTY, int(blessed))
    mark = "INFRA_BLESSED" if blessed else "INFRA_NOT_BLESSED"
    open(os.path.join(blessing.uri, mark), "w").close()


def _golden(records, folder: str, tolerance: float):
    """Returns what the trainer left of the records, if it left anything."""
    import numpy as np
    from safetensors import numpy as safetensors

    from sigline.serving.checks import infra_check

    path = os.path.join(folder, artifacts.PARITY_FILE)
    if not os.path.exists(path):
        return None
    arrays = safetensors.load_file(path)
    units = json.loads(arrays[artifacts.PARITY_UNITS].tobytes())
    rows = {unit: row for row, unit in enumerate(units)}
    captioned = [item for item in records if item.text]
    records_by_output = {
        artifacts.PARITY_IMAGE: records,
        artifacts.PARITY_TEXT: captioned,
        artifacts.PARITY_CLASSES: records,
    }
    answers = {}
    for name, items in records_by_output.items():
        if name in arrays and items:
            unknown = np.full(arrays[name].shape[1], np.nan, np.float32)
            units = (f"{item.source}/{item.key}" for item in items)
            answers[name] = np.stack(
                [arrays[name][rows[unit]] if unit in rows else unknown for unit in units]
            )
    return infra_check.Golden(
        image=answers[artifacts.PARITY_IMAGE],
        text=answers.get(artifacts.PARITY_TEXT),
        tolerance=tolerance,
        class_logits=answers.get(artifacts.PARITY_CLASSES),
    )
