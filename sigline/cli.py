"""The `sigline` command. Heavy libraries are imported by the commands that need them."""

import argparse
import dataclasses
import json
import shutil
import signal
import sys
from pathlib import Path

import sigline
from sigline import arguments as checks
from sigline import quiet
from sigline.pipeline import (
    ask_commands,
    fetch_command,
    gate_command,
    kubeflow_command,
    lineage_command,
    new_command,
    search_commands,
    seeds_command,
    serve_command,
    soup_command,
    versions_command,
)
from sigline.schemas import atomic, full_disk, progress

_COMMANDS = argparse._SubParsersAction
_CLAIM_FILE = "run.json"
# What `sigline train` writes below its output.
_TRAINED = ("checkpoints", "logs", "model", "weights")


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, runs the command and returns the exit code."""
    arguments = _parser().parse_args(argv)
    from sigline.trainer.training.preemption import Preempted

    try:
        with progress.shown(quiet=arguments.quiet):
            return arguments.run(arguments)
    except Preempted as notice:
        print(f"sigline: {notice}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except Exception as error:
        # TensorFlow's own errors, and those of SQLite, are of no kind that is known here.
        said = full_disk.sentence(error)
        if said is None and not isinstance(error, ValueError | OSError | RuntimeError):
            raise
        print(f"sigline: {said or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = checks.Parser(prog="sigline", description="Train, gate and ship image-text models.")
    parser.add_argument("--version", action="version", version=sigline.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="make and choose data").add_subparsers(required=True)
    scenes = data.add_parser("scenes", help="generate scenes with captions as WebDataset shards")
    scenes.add_argument("--output", required=True, type=Path, help="folder to write to")
    scenes.add_argument("--count", type=int, default=4000, help="number of pairs")
    scenes.add_argument("--seed", type=int, default=0)
    scenes.add_argument("--faults", default="", help="NAME=SHARE,... to plant")
    scenes.set_defaults(run=_scenes)
    fetch_command.add_parser(data)
    schema = data.add_parser("schema", help="infer a schema for the pipeline from statistics")
    schema.add_argument(
        "--statistics", required=True, type=Path, help="StatisticsGen's folder of the splits"
    )
    schema.add_argument("--output", required=True, type=Path, help="text file to write")
    schema.set_defaults(run=_schema)
    select = data.add_parser("select", help="choose which records of a split to train on")
    select.add_argument("--data", required=True, type=Path, help="folder with manifest.json")
    select.add_argument("--output", required=True, type=Path, help="folder to write to")
    select.add_argument("--split", default="train")
    select.add_argument("--model", type=Path, help="SavedModel that embeds the pairs")
    select.add_argument("--similarity-fraction", type=float, help="share to keep, most similar")
    select.add_argument("--min-similarity", type=float, help="least cosine to keep instead")
    select.add_argument("--target", type=Path, help="examples whose images to choose near ones of")
    select.add_argument("--target-limit", type=int, help="pairs to choose near them, at most")
    select.add_argument("--target-stop", type=float, help="least similarity, of the nearest's")
    select.add_argument("--target-clusters", type=int, help="centres of the target's images")
    select.add_argument("--labels", type=Path, help="file with a class's text in each line")
    select.add_argument(
        "--covariance-fraction", type=float, help="share of each class that varies as all do"
    )
    select.add_argument("--clusters", type=int, help="number of clusters of images")
    select.add_argument("--cluster-limit", type=int, help="pairs to keep of each, about")
    select.add_argument("--entries", type=Path, help="file with an entry for captions in each line")
    select.add_argument("--entry-limit", type=int, help="pairs to keep of each entry, about")
    select.add_argument("--seed", type=int, default=0)
    select.set_defaults(run=_select)

    embed = data.add_parser("embed", help="embed images once, for training with a frozen tower")
    embed.add_argument("--weights", required=True, type=Path, help="folder of weights")
    embed.add_argument("--data", required=True, type=Path, help="folder with manifest.json")
    embed.add_argument("--output", required=True, type=Path, help="folder to write to")
    embed.add_argument("--split", action="append", help="splits to embed; train by default")
    embed.add_argument("--recipe", help="whose image tower to use, if not as the weights say")
    embed.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    embed.set_defaults(run=_embed)

    run = commands.add_parser("run", help="run the whole pipeline on this machine")
    run.add_argument("--environment", default=None, help="YAML file, or name of a packaged one")
    run.set_defaults(run=_run)

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
        "--weights", type=Path, help="what the recipe's pretrained parameters start from"
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

    recipes = commands.add_parser("recipes", help="list the recipes, or show one with its settings")
    recipes.add_argument("name", nargs="?", help="recipe to show")
    recipes.set_defaults(run=_recipes)

    weights = commands.add_parser("weights", help="bring weights in and out")
    weights = weights.add_subparsers(required=True)
    bring = weights.add_parser("import", help="read Hugging Face folders and big_vision .npz")
    bring.add_argument("source", type=Path, help="folder with safetensors, or .npz file")
    bring.add_argument("--output", required=True, type=Path, help="folder of weights to write")
    bring.add_argument(
        "--vocabulary", type=Path, help="SentencePiece model, if the source has none"
    )
    bring.add_argument(
        "--drop", action="append", default=[], metavar="REGEX", help="tensors that are not wanted"
    )
    bring.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="what the source does not tell, such as image.size=256 or text.pool=gap",
    )
    bring.set_defaults(run=_import_weights)
    send = weights.add_parser("export", help="write weights for Hugging Face transformers")
    send.add_argument(
        "source", type=Path, help="weights, a run's folder or checkpoint, or a published version"
    )
    send.add_argument("--output", required=True, type=Path, help="folder to write")
    send.set_defaults(run=_export_weights)

    export = commands.add_parser("export", help="write the SavedModel of weights")
    export.add_argument("--weights", required=True, type=Path, help="folder of weights")
    export.add_argument("--output", required=True, type=Path, help="folder of the SavedModel")
    export.add_argument("--labels", type=Path, help="classes.json for the classify signature")
    export.set_defaults(run=_export)

    gate_command.add_parser(commands)
    soup_command.add_parser(commands)
    seeds_command.add_parser(commands)

    serve_command.add_parser(commands)
    versions_command.add_parser(commands)
    lineage_command.add_parser(commands)
    kubeflow_command.add_parser(commands)
    new_command.add_parser(commands)

    ask_commands.add_parsers(commands)
    search_commands.add_parsers(commands)

    demo = commands.add_parser("demo", help="generate data, run the pipeline, serve and ask")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"))
    demo.add_argument("--shuffle-captions", action="store_true", help="plant data the gate refuses")
    demo.set_defaults(run=_demo)
    _add_quiet(parser)
    return parser


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    """Adds `--quiet` to the commands that have no commands below them."""
    below = [action for action in parser._actions if isinstance(action, _COMMANDS)]
    if not below:
        parser.add_argument("--quiet", action="store_true", help="say nothing of how far it is")
    for action in below:
        for command in action.choices.values():
            _add_quiet(command)


def _scenes(arguments: argparse.Namespace) -> int:
    from sigline.components.scenes import generate

    faults = generate.parse_faults(arguments.faults)
    with progress.part("generate scenes"):
        planted = generate.write_scenes(
            arguments.output, count=arguments.count, seed=arguments.seed, faults=faults
        )
    faults = ", ".join(f"{count} {name}" for name, count in planted.items() if count) or "none"
    print(f"Wrote {arguments.count} pairs to {arguments.output}; planted faults: {faults}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from sigline.pipeline import environment

    name = arguments.environment
    loaded = environment.load(name) if name else environment.active()
    environment.check_root(loaded)
    from sigline.pipeline import checks as environment_checks

    environment_checks.check(loaded)
    quiet.import_tfx()
    with progress.part("import the pipeline"):
        from sigline.pipeline import run

    return run.main(lambda: loaded)


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
    from sigline.trainer.weights import inheritance, weight_folders

    recipe, weights = config, _load_weights(arguments.weights) if arguments.weights else None
    config = inheritance.inherit(recipe, weights, arguments.overrides)
    for line in inheritance.report(recipe, config, weights):
        print(line, file=sys.stderr)
    brought = inheritance.brings_vocabulary(config, weights)
    job = Job(
        config=config,
        folders=arguments.data,
        vocabulary=_vocabulary(arguments.vocabulary, config, brought=brought),
        code_digest=code_digest(),
        weights=weights,
        teachers={name: _load_weights(x) for name, x in _named(arguments.teacher).items()},
        labels=_labels(arguments.labels),
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    _claim_run(arguments.output, job)
    with progress.part("train"):
        result, metadata = job.run(arguments.output, model_dir)
    if metadata is None:
        return 0
    variables = two_tower.named_variables(result.model)
    trained = {name: variable.numpy() for name, variable in variables.items()}
    weights_dir = arguments.output / "weights"
    if weights_dir.exists() and result.first_step < config.steps:
        # Those of fewer steps, before the run was prolonged.
        shutil.rmtree(weights_dir)
    if not weights_dir.exists():
        held = weight_folders.Weights(
            config, trained, job.vocabulary, result.initial_digest, job.tokenizer
        )
        weight_folders.save(weights_dir, held)
    print(f"Exported {metadata['num_parameters']:,} parameters to {model_dir}")
    return 0


def _check_training(arguments: argparse.Namespace, config, model_dir: Path) -> None:
    """Refuses what is wrong with the arguments, as far as that can be told without TensorFlow."""
    for path in arguments.data:
        checks.check_folder(path, "--data", holds="*.gz")
    checks.check_file(arguments.vocabulary, "--vocabulary")
    if arguments.weights is None:
        _vocabulary(arguments.vocabulary, config, brought=False)
    checks.check_there(arguments.weights, "--weights")
    if arguments.weights is None and config.pretrained:
        raise ValueError(
            "--weights must be given: the recipe starts from some. "
            f"Received: pretrained={list(config.pretrained)}"
        )
    teachers = _named(arguments.teacher)
    for path in teachers.values():
        checks.check_there(Path(path), "--teacher")
    if set(teachers) != set(config.teachers):
        raise ValueError(
            f"--teacher must name those of the recipe: {', '.join(config.teachers) or 'none'}. "
            f"Received: {', '.join(teachers) or 'none'}"
        )
    _labels(arguments.labels)
    if arguments.output.is_file():
        raise ValueError(f"--output must be a folder. Received: --output {arguments.output}")
    if model_dir.exists() and (arguments.output / _CLAIM_FILE).is_file():
        raise ValueError(
            "output holds a finished model already; to train it for more steps, move that away. "
            f"Received: {model_dir}"
        )
    _check_claimed(arguments.output, of=_TRAINED)


def _vocabulary(path: Path | None, config, *, brought: bool) -> bytes | None:
    if path is None and brought:
        return None
    if (path is None) != (config.text is None):
        raise ValueError(
            "--vocabulary must be given for a recipe with a text tower, and for no other; weights "
            "whose token table is pretrained bring theirs. "
            f"Received: --vocabulary {path}, recipe={config.name}"
        )
    return path.read_bytes() if path else None


def _load_weights(path: str | Path):
    """Returns weights; what a foreign file does not tell, and was assumed, is printed."""
    from sigline.trainer.weights import weight_folders

    weights = weight_folders.load(path)
    for item in weights.assumed:
        print(f"Assumed of {path}: {item}", file=sys.stderr)
    return weights


def _named(assignments: list[str]) -> dict[str, str]:
    """Returns the values of NAME=VALUE arguments by their names."""
    found: dict[str, str] = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if not name or not value or name in found:
            raise ValueError(
                "--teacher reads NAME=WEIGHTS, with another name for each. "
                f"Received: {assignment!r}"
            )
        found[name] = value
    return found


def _labels(path: Path | None):
    from sigline.schemas.labels import LabelSet

    checks.check_file(path, "--labels")
    try:
        return LabelSet.from_json(path.read_text()) if path else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--labels must be a label set. Received: {path}: {error}") from None


def _recipes(arguments: argparse.Namespace) -> int:
    from sigline.trainer import config as trainer_config
    from sigline.trainer import recipes

    if arguments.name is not None:
        module = trainer_config.recipe_module(arguments.name)
        print(f"{str(module.__doc__).strip()}\n\n{module.config().to_json()}")
        return 0
    names = recipes.names()
    for name in names:
        card = str(trainer_config.recipe_module(name).__doc__).strip()
        print(f"{name:{max(map(len, names))}}  {card.splitlines()[0]}")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from sigline.schemas import artifacts

    paths = sorted(arguments.statistics.glob("Split-*/FeatureStats.pb"))
    if not paths:
        raise ValueError(
            "--statistics must be a folder with Split-NAME/FeatureStats.pb. "
            f"Received: {arguments.statistics}"
        )
    checks.check_absent(arguments.output, "--output")
    quiet.import_tfx()
    import tensorflow_data_validation as tfdv

    from sigline.components.validate import infer

    curated = tfdv.load_schema_text(str(artifacts.SCHEMA))
    found = infer.infer(curated, [tfdv.load_stats_binary(str(path)) for path in paths])
    tfdv.write_schema_text(found, str(arguments.output))
    print(f"Look through {arguments.output}, and name it as `schema` in the environment.")
    return 0


def _select(arguments: argparse.Namespace) -> int:
    from sigline.components.curate import rules
    from sigline.schemas import record
    from sigline.schemas.selection import SELECTION_FILE, Selection

    checks.check_folder(arguments.data, "--data", holds=record.MANIFEST_FILE)
    checks.check_folder(arguments.model, "--model", holds="saved_model.pb")
    checks.check_folder(arguments.target, "--target")
    for path, option in ((arguments.entries, "--entries"), (arguments.labels, "--labels")):
        checks.check_file(path, option)
    checks.check_absent(arguments.output, "--output")
    fields = {item.name for item in dataclasses.fields(rules.CurateConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in fields}
    chosen = {name: value for name, value in given.items() if value is not None}
    if not set(chosen) - {"seed", "target_stop", "target_clusters"}:
        raise ValueError("select needs at least one of the options that say what to choose.")
    if (arguments.entries is None) != (arguments.entry_limit is None):
        raise ValueError("--entries and --entry-limit must be given together.")
    config = rules.CurateConfig(**chosen)
    quiet.import_tensorflow()
    import apache_beam as beam

    from sigline.components.curate import transforms

    name = f"Split-{arguments.split}"
    with atomic.new_folder(arguments.output) as scratch:
        transform = transforms.Curate(
            str(arguments.data.resolve()),
            str(scratch),
            config,
            model_dir=str(arguments.model) if arguments.model else None,
            entries=_lines(arguments.entries),
            labels=_lines(arguments.labels),
            target_dir=str(arguments.target.resolve()) if arguments.target else None,
            split=arguments.split,
        )
        with progress.part("select"), beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
            _ = pipeline | transform
        selection = Selection.from_json((scratch / name / SELECTION_FILE).read_text())
        if not selection.selected:
            raise ValueError("No record was chosen; choose less strictly.")
    folder = arguments.output / name
    total = sum(shard.records for shard in selection.shards.values())
    print(f"Chose {selection.selected} of {total} records; train on them with --data {folder}")
    return 0


def _lines(path: Path | None) -> tuple[str, ...]:
    """Returns the lines of a file that are not empty; none of none."""
    lines = path.read_text().splitlines() if path else ()
    return tuple(line.strip() for line in lines if line.strip())


def _check_embedding(arguments: argparse.Namespace) -> None:
    """Refuses what is wrong with the arguments, as far as that can be told without TensorFlow."""
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

    weights = _load_weights(arguments.weights)
    config = weights.config
    if arguments.recipe is not None:
        config = trainer_config.load_recipe(arguments.recipe)
    config = trainer_config.override(config, arguments.overrides)
    # As the training does: a recipe that freezes its image tower takes it over whole.
    tower = start.tower_config(config).pretrained
    config = inheritance.inherit(
        dataclasses.replace(config, pretrained=tower), weights, arguments.overrides
    )
    model = start.frozen_tower(config, weights)
    digest = export.image_digest(model)
    # What an interrupted run leaves is taken up again if it is of the same data and tower.
    partial = arguments.output.with_name(f"{arguments.output.name}.partial")
    tower = partial / "tower"
    # A run that is stopped while it exports the tower leaves no claim, and nothing else.
    _check_claimed(partial, but=("tower",))
    if not tower.exists():
        export.export_image_tower(tower, model, config=model.config)
    splits = tuple(arguments.split or ["train"])
    transform = transforms.EmbedImages(str(arguments.data), str(tower), str(partial), splits)
    if transform.image_digest != digest:
        raise ValueError(
            "An interrupted run with another image tower is in the way; remove it. "
            f"Received: {partial}"
        )
    _claim(partial, [transform.claim, *splits])
    with progress.part("embed"), beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        _ = pipeline | transform
    atomic.move_folder(partial, arguments.output)
    print(f"Wrote embeddings to {arguments.output}")
    return 0


def _import_weights(arguments: argparse.Namespace) -> int:
    checks.check_weights(arguments.source, "SOURCE")
    checks.check_file(arguments.vocabulary, "--vocabulary")
    checks.check_absent(arguments.output, "--output")
    quiet.import_tensorflow()
    from sigline.trainer.weights import inheritance, weight_folders

    weights = weight_folders.load(
        arguments.source, drop=arguments.drop, assignments=arguments.assignments
    )
    if arguments.vocabulary is not None:
        weights = inheritance.with_vocabulary(weights, arguments.vocabulary.read_bytes())
    weight_folders.save(arguments.output, weights)
    count = sum(value.size for value in weights.parameters.values())
    towers = sorted({name.split("/")[0] for name in weights.parameters if "/" in name})
    words = "with" if weights.vocabulary is not None else "without"
    print(
        f"Wrote {count:,} parameters ({', '.join(towers)}) {words} vocabulary to {arguments.output}"
    )
    for item in weights.assumed:
        print(f"Assumed {item}")
    if weights.assumed:
        print("The source does not tell these; --set KEY=VALUE says otherwise.")
    return 0


def _export_weights(arguments: argparse.Namespace) -> int:
    source = arguments.source
    # A checkpoint is named without the endings of its files.
    if not source.with_name(f"{source.name}.index").is_file():
        checks.check_there(source, "SOURCE")
    checks.check_absent(arguments.output, "--output")
    quiet.import_tensorflow()
    from sigline.trainer import sources
    from sigline.trainer.weights import weight_folders

    weights = sources.load(source)
    notes = weight_folders.save_hugging_face(arguments.output, weights)
    print(f"Wrote {arguments.output}")
    for note in notes:
        print(f"Note: {note}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    checks.check_weights(arguments.weights, "--weights")
    checks.check_absent(arguments.output, "--output")
    labels = _labels(arguments.labels)
    quiet.import_tensorflow()
    from sigline.trainer.training import start

    with progress.part("export the model"):
        metadata = start.export_weights(arguments.output, _load_weights(arguments.weights), labels)
    print(f"Exported {metadata['num_parameters']:,} parameters to {arguments.output}")
    return 0


def _check_claimed(
    output: Path, *, of: tuple[str, ...] | None = None, but: tuple[str, ...] = ()
) -> None:
    """Refuses a folder that holds files of someone else where a run would write.

    Args:
        output: The folder; it need not exist.
        of: Names that the run writes; None for a folder that is the run's alone.
        but: Names that a run leaves there before it claims the folder.
    """
    if (output / _CLAIM_FILE).is_file():
        return
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    others = [name for name in names if name not in but and not name.startswith(".tmp-")]
    if in_the_way := [name for name in others if of is None or name in of]:
        raise ValueError(
            f"{output / in_the_way[0]} is in the way: no run of sigline wrote it. Move it away, or "
            "name another place with --output."
        )


def _claim(output: Path, identity: list[str]) -> None:
    """Writes beside the checkpoints what they belong to; refuses those of another run."""
    path, text = output / _CLAIM_FILE, json.dumps(identity)
    if not path.exists():
        # Several workers may be here at once, all with the same text.
        atomic.write_file(path, text)
    if path.read_text() != text:
        raise ValueError(
            "output holds a run with another configuration, data or vocabulary; choose another "
            f"folder. Received: output={output}"
        )


def _claim_run(output: Path, job) -> None:
    """As `_claim`, of a training run, whose claim may be one of an earlier version."""
    from sigline.trainer.training import checkpoints

    path = output / _CLAIM_FILE
    if path.is_file():
        claim = json.loads(path.read_text())
        description = output / "checkpoints" / checkpoints.DESCRIPTION_FOLDER
        if isinstance(claim, list) and len(claim) == 1 and job.is_of(claim[0], description):
            return
    _claim(output, [job.identity])


def _demo(arguments: argparse.Namespace) -> int:
    quiet.silence()
    if arguments.output.is_file():
        raise ValueError(f"--output must be a folder. Received: --output {arguments.output}")
    from sigline.pipeline import demo

    return demo.run(arguments.output, shuffle_captions=arguments.shuffle_captions)


if __name__ == "__main__":
    sys.exit(main())
