"""`sigline train`: trains and exports without TFX."""

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.commands import claims, loading
from sigline.schemas import progress

# Names that the command writes in the output folder.
_TRAINED = ("checkpoints", "logs", "model", "weights")


def add_parser(commands) -> None:
    """Adds the command."""
    train = commands.add_parser("train", help="train and export without TFX")
    train.add_argument("--recipe", required=True)
    train.add_argument(
        "--data",
        required=True,
        action="append",
        type=Path,
        help="folder with training TFRecords; several are mixed, see data.mixture",
    )
    train.add_argument(
        "--vocabulary",
        type=Path,
        help="SentencePiece model; for recipes with a text tower, unless the weights bring it",
    )
    train.add_argument(
        "--output", "--workdir", required=True, type=Path, help="checkpoints, logs and model"
    )
    train.add_argument("--labels", type=Path, help="classes.json for the classify signature")
    train.add_argument(
        "--weights", type=Path, help="weights for the recipe's pretrained parameters"
    )
    train.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="NAME=WEIGHTS",
        help="weights of a teacher that the recipe names",
    )
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from sigline.trainer import config as trainer_config

    config = trainer_config.override(
        trainer_config.load_recipe(arguments.recipe), arguments.overrides
    )
    model_dir = arguments.output / "model"
    _check_training(arguments, config, model_dir)
    quiet.import_tensorflow()
    from sigline.trainer.models import two_tower
    from sigline.trainer.run import Job, code_digest
    from sigline.trainer.weights import inheritance, model_weights, weight_folders

    recipe, weights = config, loading.weights(arguments.weights) if arguments.weights else None
    config = inheritance.inherit(recipe, weights, arguments.overrides)
    for line in inheritance.report(recipe, config, weights):
        print(line, file=sys.stderr)
    has_vocabulary = inheritance.brings_vocabulary(config, weights)
    job = Job(
        config=config,
        folders=arguments.data,
        vocabulary=_vocabulary(arguments.vocabulary, config, in_weights=has_vocabulary),
        code_digest=code_digest(),
        weights=weights,
        teachers={name: loading.weights(x) for name, x in _named(arguments.teacher).items()},
        labels=loading.labels(arguments.labels),
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    _claim_run(arguments.output, job)
    try:
        with progress.part("train"):
            result, metadata = job.run(arguments.output, model_dir)
    except ValueError:
        # What is refused before anything is made leaves the folder to other settings.
        if [path.name for path in arguments.output.iterdir()] == [claims.FILE]:
            (arguments.output / claims.FILE).unlink(missing_ok=True)
        raise
    if metadata is None:
        return 0
    variables = two_tower.named_variables(result.model)
    trained = {name: variable.numpy() for name, variable in variables.items()}
    weights_dir = arguments.output / "weights"
    if weights_dir.exists() and result.first_step < config.steps:
        # Weights after fewer steps, from before the run was continued.
        shutil.rmtree(weights_dir)
    if not weights_dir.exists():
        final_weights = model_weights.Weights(
            config, trained, job.vocabulary, result.initial_digest, job.tokenizer
        )
        weight_folders.save(weights_dir, final_weights)
    print(f"Exported {metadata['num_parameters']:,} parameters to {model_dir}")
    return 0


def _check_training(arguments: argparse.Namespace, config, model_dir: Path) -> None:
    """Checks the arguments as far as possible without importing TensorFlow."""
    from sigline.trainer.config.objectives import check_tree

    for path in arguments.data:
        checks.check_folder(path, "--data", holds="*.gz")
    checks.check_file(arguments.vocabulary, "--vocabulary")
    if arguments.weights is None:
        _vocabulary(arguments.vocabulary, config, in_weights=False)
    checks.check_exists(arguments.weights, "--weights")
    if arguments.weights is None and config.pretrained:
        raise ValueError(
            "--weights must be given: the recipe starts from some. "
            f"Received: pretrained={list(config.pretrained)}"
        )
    teachers = _named(arguments.teacher)
    for path in teachers.values():
        checks.check_exists(Path(path), "--teacher")
    if set(teachers) != set(config.teachers):
        raise ValueError(
            f"--teacher must name those of the recipe: {', '.join(config.teachers) or 'none'}. "
            f"Received: {', '.join(teachers) or 'none'}"
        )
    check_tree(config.objectives, loading.labels(arguments.labels))
    if arguments.output.is_file():
        raise ValueError(f"--output must be a folder. Received: --output {arguments.output}")
    if model_dir.exists() and (arguments.output / claims.FILE).is_file():
        raise ValueError(
            "output holds a finished model already; to train it for more steps, move that away. "
            f"Received: {model_dir}"
        )
    claims.check(arguments.output, written=_TRAINED)


def _vocabulary(path: Path | None, config, *, in_weights: bool) -> bytes | None:
    if path is None and in_weights:
        return None
    if (path is None) != (config.text is None):
        raise ValueError(
            "--vocabulary must be given for a recipe with a text tower, and for no other; weights "
            "whose token table is pretrained bring theirs. "
            f"Received: --vocabulary {path}, recipe={config.name}"
        )
    return path.read_bytes() if path else None


def _named(assignments: list[str]) -> dict[str, str]:
    """Returns the values of NAME=VALUE arguments by their names."""
    values: dict[str, str] = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if not name or not value or name in values:
            raise ValueError(
                "--teacher must be NAME=WEIGHTS, with another name for each. "
                f"Received: {assignment!r}"
            )
        values[name] = value
    return values


def _claim_run(output: Path, job) -> None:
    """Claims the output folder; accepts a claim that an earlier version wrote for this run."""
    from sigline.trainer.training import checkpoints

    path = output / claims.FILE
    if path.is_file():
        claim = json.loads(path.read_text())
        description = output / "checkpoints" / checkpoints.DESCRIPTION_FOLDER
        claim = claim[0] if isinstance(claim, list) and len(claim) == 1 else None
        if claim is not None and job.is_of(claim, description):
            return
        if claim is not None and _without_lanes(job).is_of(claim, description):
            raise ValueError(
                "output holds a run from before records were read in lanes. To go on in its own "
                "order give --set data.lanes=none, or choose another folder. "
                f"Received: output={output}, data.lanes={job.config.data.lanes}"
            )
    claims.claim(output, [job.identity])


def _without_lanes(job):
    data = dataclasses.replace(job.config.data, lanes=None)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, data=data))
