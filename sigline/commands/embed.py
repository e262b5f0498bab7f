"""`sigline data embed`: embeds images once, for training with a frozen tower."""

import argparse
import dataclasses
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.commands import claims, loading
from sigline.schemas import atomic, progress


def add_parser(data) -> None:
    """Adds the command."""
    embed = data.add_parser("embed", help="embed images once, for training with a frozen tower")
    embed.add_argument("--weights", required=True, type=Path, help="folder of weights")
    embed.add_argument("--data", required=True, type=Path, help="folder with manifest.json")
    embed.add_argument("--output", required=True, type=Path, help="folder to write to")
    embed.add_argument("--split", action="append", help="splits to embed; train by default")
    embed.add_argument("--recipe", help="recipe of the image tower, if not that of the weights")
    embed.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    embed.set_defaults(run=_embed)


def _check_embedding(arguments: argparse.Namespace) -> None:
    """Checks the arguments as far as possible without importing TensorFlow."""
    from sigline.schemas import record
    from sigline.trainer import config as trainer_config

    checks.check_weights(arguments.weights, "--weights")
    checks.check_folder(arguments.data, "--data", holds=record.MANIFEST_FILE)
    checks.check_absent(arguments.output, "--output")
    stored = arguments.weights / "sigline.json"
    if arguments.recipe is not None:
        trainer_config.override(trainer_config.load_recipe(arguments.recipe), arguments.overrides)
    elif stored.is_file():
        config = trainer_config.from_json(stored.read_text())
        trainer_config.override(config, arguments.overrides)


def _embed(arguments: argparse.Namespace) -> int:
    _check_embedding(arguments)
    quiet.import_tensorflow()
    import apache_beam as beam

    from sigline.components.embed import transforms
    from sigline.trainer import config as trainer_config
    from sigline.trainer.export import saved_model as export
    from sigline.trainer.training import start
    from sigline.trainer.weights import inheritance

    weights = loading.weights(arguments.weights)
    config = weights.config
    if arguments.recipe is not None:
        config = trainer_config.load_recipe(arguments.recipe)
    config = trainer_config.override(config, arguments.overrides)
    # As in training: a recipe with a frozen image tower takes over all of its weights.
    tower = start.tower_config(config).pretrained
    config = inheritance.inherit(
        dataclasses.replace(config, pretrained=tower), weights, arguments.overrides
    )
    model = start.frozen_tower(config, weights)
    digest = export.image_digest(model)
    # An interrupted run is resumed if its data and tower are the same.
    partial = arguments.output.with_name(f"{arguments.output.name}.partial")
    tower = partial / "tower"
    # A run that is interrupted while it exports the tower leaves only that, without a claim.
    claims.check(partial, ignored=("tower",))
    if not tower.exists():
        export.export_image_tower(tower, model, config=model.config)
    splits = tuple(arguments.split or ["train"])
    transform = transforms.EmbedImages(str(arguments.data), str(tower), str(partial), splits)
    if transform.image_digest != digest:
        raise ValueError(
            "An interrupted run with another image tower is in the way; remove it. "
            f"Received: {partial}"
        )
    claims.claim(partial, [transform.claim, *splits])
    with progress.part("embed"), beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        _ = pipeline | transform
    atomic.move_folder(partial, arguments.output)
    print(f"Wrote embeddings to {arguments.output}")
    return 0
