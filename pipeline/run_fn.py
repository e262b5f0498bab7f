"""Sigline's trainer as the `run_fn` of TFX's own Trainer component.

Trainer(
    run_fn="sigline.pipeline.run_fn.run_fn",
    examples=...,
    train_args=trainer_pb2.TrainArgs(splits=["train"], num_steps=1000),
    custom_config={"recipe": "siglip_b16", "vocabulary": "sentencepiece.model"},
)
"""

import os
from pathlib import Path

from tfx.components.trainer.fn_args_utils import FnArgs

from sigline.schemas.labels import LabelSet
from sigline.trainer import config as trainer_config
from sigline.trainer.run import Job, code_digest
from sigline.trainer.weights import inheritance, weight_folders

_KNOWN = ("recipe", "overrides", "vocabulary", "weights", "teachers", "labels")


def run_fn(fn_args: FnArgs) -> None:
    """Trains a recipe and exports the model where TFX wants it.

    Args:
        fn_args: TFX's. Of `custom_config`, `recipe` names the recipe; `overrides` is a list of
            `KEY=VALUE`; `vocabulary`, `weights` and `labels` are paths, `teachers` paths by name.
            Weights whose token table is pretrained bring their vocabulary.
            `train_steps`, if given, are the steps.

    Raises:
        ValueError: If `custom_config` is wrong, and as `trainer.training.loop.train`.
    """
    custom = dict(fn_args.custom_config or {})
    unknown = sorted(set(custom) - set(_KNOWN))
    if unknown or "recipe" not in custom:
        raise ValueError(
            f"custom_config must have a recipe, and may have {', '.join(_KNOWN[1:])}. "
            f"Received: {', '.join(sorted(custom)) or 'nothing'}"
        )
    overrides = list(custom.get("overrides", []))
    if fn_args.train_steps:
        overrides.append(f"steps={fn_args.train_steps}")
    config = trainer_config.override(trainer_config.load_recipe(custom["recipe"]), overrides)
    weights = weight_folders.load(custom["weights"]) if "weights" in custom else None
    config = inheritance.inherit(config, weights, overrides)
    labels = custom.get("labels")
    teachers = custom.get("teachers", {})
    job = Job(
        config=config,
        # TFX gives patterns such as `.../Split-train/*`; their folders stay in the order of the
        # splits.
        folders=list(dict.fromkeys(os.path.dirname(x) for x in fn_args.train_files)),
        vocabulary=Path(custom["vocabulary"]).read_bytes() if "vocabulary" in custom else None,
        code_digest=code_digest(),
        weights=weights,
        teachers={name: weight_folders.load(path) for name, path in teachers.items()},
        labels=LabelSet.from_json(Path(labels).read_text()) if labels else None,
    )
    job.run(fn_args.model_run_dir, fn_args.serving_model_dir)
