"""`sigline gate`: judges a SavedModel without a pipeline, as in continuous integration."""

import argparse
import contextlib
import json
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.commands import judged_data
from sigline.schemas import artifacts, ownership, progress, record, signatures, strength

BLESSED, NOT_BLESSED = 0, 1
JUNIT_FILE, SUMMARY_FILE, CLIP_BENCHMARK_FOLDER = "junit.xml", "summary.md", "clip_benchmark"
_COMMAND = "sigline gate"
# Files that the command writes in any case.
_FILES = (
    artifacts.METRICS_FILE,
    artifacts.VERDICT_FILE,
    artifacts.REPORT_FILE,
    JUNIT_FILE,
    SUMMARY_FILE,
    CLIP_BENCHMARK_FOLDER,
)


def add_parser(commands) -> None:
    """Adds the command to those of the command line."""
    parser = commands.add_parser(
        "gate",
        help="judge a SavedModel by data, thresholds and the last blessed model",
        description="Exits with 0 if the model passes, with 1 if it is refused.",
    )
    parser.add_argument("--model", required=True, type=Path, help="SavedModel to judge")
    parser.add_argument("--baseline", type=Path, help="SavedModel of the last blessed model")
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        help="folder of TFRecords, or of splits of them, or one of CLIP_benchmark's WebDatasets",
    )
    parser.add_argument("--split", help="split to judge by; eval, or test of CLIP_benchmark's")
    parser.add_argument(
        "--gate", type=Path, help="YAML or JSON file of thresholds; by default the recipe's"
    )
    parser.add_argument(
        "--labels",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="classes.json, several by the name of their prompts; else the data's or the model's",
    )
    parser.add_argument(
        "--train-data",
        action="append",
        default=[],
        type=Path,
        help="training data, to check for leaks",
    )
    parser.add_argument("--logs", type=Path, help="TensorBoard files of the training, to plot")
    parser.add_argument("--support", type=Path, help="labelled records that probes learn from")
    parser.add_argument(
        "--teacher", type=Path, help="SavedModel of a teacher, to measure agreement with"
    )
    parser.add_argument(
        "--corrupt",
        action="append",
        default=[],
        metavar="KIND@SEVERITY",
        help="corruption of images to judge by too, such as blur@3",
    )
    parser.add_argument("--output", type=Path, help="folder for metrics.json, junit.xml and others")
    parser.add_argument(
        "--tfma", action="store_true", help="also write results for tfma.load_eval_result"
    )
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings for later calls")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judges the model, prints the table and returns the exit code."""
    started = time.monotonic()
    from sigline.components.evaluate.options import corruption

    limits = _check(arguments)
    corruptions = tuple(corruption(text, "--corrupt") for text in arguments.corrupt)
    given_labels = judged_data.label_sets(arguments.labels)
    quiet.import_tensorflow()
    import apache_beam as beam

    from sigline.components.evaluate import judge, results, summary
    from sigline.components.evaluate.inputs import Inputs

    with tempfile.TemporaryDirectory() as scratch, _output(arguments.output) as output:
        data = judged_data.open_split(arguments.data, arguments.split, "--data", Path(scratch))
        inputs = Inputs(
            split_dir=data.split_dir,
            model_dir=str(arguments.model),
            baseline_dir=str(arguments.baseline) if arguments.baseline else None,
            cache_dir=str(arguments.cache or Path(scratch) / "cache"),
            train_dirs=tuple(
                _train_dir(path, "--train-data", scratch) for path in arguments.train_data
            ),
            support_dir=arguments.support and _train_dir(arguments.support, "--support", scratch),
            teacher_dir=str(arguments.teacher) if arguments.teacher else None,
            corruptions=corruptions,
            logs_dir=str(arguments.logs) if arguments.logs else None,
            labels=given_labels or data.labels,
            captioned=data.captioned,
        )
        pipeline = beam.Pipeline(argv=["--runner=FnApiRunner"])
        with progress.part("judge"):
            judgement = judge.judge(inputs, limits, str(output), pipeline, with_tfma=arguments.tfma)
        verdict = judgement.verdict
        spent = time.monotonic() - started
        (output / JUNIT_FILE).write_text(summary.junit(verdict, seconds=spent))
        text = summary.markdown(verdict, judgement.results, title=arguments.model.name)
        (output / SUMMARY_FILE).write_text(text)
        _write_for_clip_benchmark(output / CLIP_BENCHMARK_FOLDER, arguments, judgement)
        if arguments.output is not None:
            ownership.OutputFolder(arguments.output, _COMMAND).place(output)
    print(summary.table(verdict))
    words = strength.sentence(results.to_dict(judgement.results))
    blessed = f"Blessed; {words}." if words else "Blessed."
    print(blessed if verdict.blessed else "Not blessed.")
    return BLESSED if verdict.blessed else NOT_BLESSED


def _check(arguments: argparse.Namespace):
    """Checks the arguments without importing TensorFlow, and returns the gate."""
    for name in ("model", "baseline", "teacher"):
        path = getattr(arguments, name)
        if path is not None and not (path / "saved_model.pb").is_file():
            raise ValueError(f"--{name} must be the folder of a SavedModel. Received: {path}")
    checks.check_folder(arguments.data, "--data")
    for path in arguments.train_data:
        checks.check_folder(path, "--train-data")
    checks.check_folder(arguments.support, "--support")
    checks.check_folder(arguments.logs, "--logs")
    checks.check_file(arguments.gate, "--gate")
    if arguments.output is not None:
        ownership.OutputFolder(arguments.output, _COMMAND).check(list(_FILES))
    return _gate(arguments.gate, arguments.model)


@contextlib.contextmanager
def _output(folder: Path | None) -> Iterator[Path]:
    """Yields a scratch folder on the same file system as the output folder."""
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    # Fails now rather than after minutes of work. The files are checked again when they are moved.
    ownership.OutputFolder(folder, _COMMAND).check(list(_FILES))
    scratch = folder / f".tmp-{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _train_dir(folder: Path, option: str, scratch: str) -> str:
    return judged_data.open_split(folder, record.TRAIN_SPLIT, option, Path(scratch)).split_dir


def _write_for_clip_benchmark(folder: Path, arguments: argparse.Namespace, judgement) -> None:
    from sigline.components.evaluate import clip_benchmark
    from sigline.components.shared import served_model

    metadata = served_model.metadata(str(arguments.model))
    tags = Counter(
        tag
        for view in judgement.views.values()
        for item in view.split.records
        for tag in item.language
    )
    files = clip_benchmark.files(
        judgement.results,
        dataset=arguments.data.resolve().name,
        model=metadata.get("recipe", arguments.model.name),
        pretrained=metadata.get("model_digest", "unknown")[:12],
        language=tags.most_common(1)[0][0] if tags else record.UNKNOWN_LANGUAGE,
    )
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def _gate(path: Path | None, model: Path):
    """Returns the gate of a file, or of the recipe in the model's metadata."""
    import yaml

    from sigline.schemas.gate import Gate
    from sigline.trainer import config

    if path is not None:
        try:
            return Gate.from_dict(yaml.safe_load(path.read_text()))
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {error}") from None
    metadata = model / signatures.ASSETS_DIR / signatures.METADATA_FILE
    if not metadata.is_file():
        raise ValueError(f"--gate is needed: the model names no recipe. Received: --model {model}")
    try:
        recipe = str(json.loads(metadata.read_text())["recipe"])
        if config.is_of_other_package(recipe):
            # Metadata of a model must not decide which code is run.
            raise ValueError(
                f"the model's recipe must be one of sigline's to be used. Received: {recipe}"
            )
        return config.load_gate(recipe)
    except (KeyError, ValueError) as error:
        raise ValueError(f"--gate is needed: {error}") from None
