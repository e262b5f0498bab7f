"""`sigline soup`: averages models that share their initial weights, or picks the best one."""

import argparse
import json
import tempfile
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.commands import judged_data
from sigline.schemas import record

SOUP_FILE = "soup.json"
UNIFORM, GREEDY, BEST = "uniform", "greedy", "best"


def add_parser(commands) -> None:
    """Adds the command to those of the command line."""
    parser = commands.add_parser(
        "soup",
        help="average models that began alike, or choose the best of them",
        description="Writes a folder of weights, which `sigline export` makes a SavedModel of.",
    )
    parser.add_argument(
        "--weights",
        required=True,
        action="append",
        type=Path,
        help="weights, a checkpoint, or a run's folder for all of its checkpoints; several",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder of weights to write")
    parser.add_argument("--method", choices=(GREEDY, UNIFORM, BEST), default=GREEDY)
    parser.add_argument("--data", type=Path, help="what to score by, as `sigline gate` reads it")
    parser.add_argument("--split", help="split to score by; eval, or test of CLIP_benchmark's")
    parser.add_argument(
        "--metric", default="zero_shot_accuracy", help="score, named as in metrics.json"
    )
    parser.add_argument(
        "--minimize", action="store_true", help="lower values of the metric are better"
    )
    parser.add_argument(
        "--labels",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="classes.json, for metrics of classes",
    )
    parser.add_argument("--support", type=Path, help="labelled records that probes learn from")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Builds the soup, prints its ingredients, returns the exit code."""
    checks.check_absent(arguments.output, "--output")
    if arguments.data is None and arguments.method != UNIFORM:
        raise ValueError(
            f"--method {arguments.method} needs --data to score by; or use --method {UNIFORM}. "
            "Received: no --data"
        )
    for path in arguments.weights:
        # A checkpoint is a prefix of file names, not a file.
        if not path.with_name(f"{path.name}.index").is_file():
            checks.check_exists(path, "--weights")
    checks.check_folder(arguments.data, "--data")
    checks.check_folder(arguments.support, "--support")
    judged_data.label_sets(arguments.labels)
    quiet.import_tensorflow()
    from sigline.trainer.training import soups
    from sigline.trainer.weights import weight_folders

    ingredients = soups.find(arguments.weights)
    with tempfile.TemporaryDirectory() as scratch:
        score = None if arguments.data is None else _Score(arguments, Path(scratch))
        if arguments.method == UNIFORM:
            soup = soups.uniform(ingredients, score)
        else:
            assert score is not None
            make = soups.greedy if arguments.method == GREEDY else soups.best
            soup = make(ingredients, score)
    sign = -1.0 if arguments.minimize else 1.0
    notes = {
        "method": arguments.method,
        "metric": arguments.metric if score is not None else None,
        "score": None if soup.score is None else sign * soup.score,
        "ingredients": {name: ingredients[name]().digest() for name in soup.ingredients},
        "alone": {name: sign * value for name, value in soup.alone.items()},
        "tried": [[name, sign * value] for name, value in soup.tried],
        "data_digest": None if score is None else score.data_digest,
    }
    weight_folders.save(
        arguments.output, soup.weights, notes={SOUP_FILE: json.dumps(notes, indent=1).encode()}
    )
    for name in ingredients:
        mark = "+" if name in soup.ingredients else " "
        alone = f"{notes['alone'][name]:10.4f}" if name in soup.alone else ""
        print(f"{mark} {alone}  {name}")
    reached = "" if soup.score is None else f", {arguments.metric} {notes['score']:.4f}"
    print(
        f"Wrote {len(soup.ingredients)} of {len(ingredients)} models as one to "
        f"{arguments.output}{reached}"
    )
    return 0


class _Score:
    """Scores weights: exports the model and computes a metric as the gate does."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path):
        from sigline.trainer.inputs import shards

        self._metric, self._sign = arguments.metric, -1.0 if arguments.minimize else 1.0
        self._data = judged_data.open_split(arguments.data, arguments.split, "--data", scratch)
        self._labels = judged_data.label_sets(arguments.labels) or self._data.labels
        self._support_dir = None
        if arguments.support is not None:
            support = arguments.support, record.TRAIN_SPLIT, "--support"
            self._support_dir = judged_data.open_split(*support, scratch).split_dir
        self.data_digest = shards.data_digest(self._data.split_dir)

    def __call__(self, weights) -> float:
        import apache_beam as beam

        from sigline.components.evaluate import evaluation, model_views
        from sigline.components.evaluate.inputs import CANDIDATE, Inputs
        from sigline.trainer.training import start

        with tempfile.TemporaryDirectory() as scratch:
            model_dir = f"{scratch}/model"
            start.export_weights(model_dir, weights)
            inputs = Inputs(
                split_dir=self._data.split_dir,
                model_dir=model_dir,
                cache_dir=f"{scratch}/cache",
                support_dir=self._support_dir,
                labels=self._labels,
                captioned=self._data.captioned,
            )
            pipeline = beam.Pipeline(argv=["--runner=FnApiRunner"])
            embedded, _ = model_views.embed(inputs, f"{scratch}/embedded", pipeline)
            labels = model_views.all_labels(inputs)
            view = model_views.views(inputs, embedded, labels)[CANDIDATE]
            measures = evaluation.measures(view)
        if self._metric not in measures:
            raise ValueError(
                f"--metric must be one of {', '.join(sorted(measures))}. Received: {self._metric}; "
                "metrics of classes need --labels, and those of probes --support"
            )
        return self._sign * measures[self._metric].value
