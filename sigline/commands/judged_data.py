"""Evaluation data of commands: splits of sigline's examples, or of CLIP_benchmark's folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sigline.schemas import record
from sigline.schemas.labels import LabelSet

_SPLIT_FOLDER = "Split-{}"


@dataclass(frozen=True)
class JudgedData:
    """A split to evaluate models on.

    Attributes:
        split_dir: Folder of its TFRecord shards.
        labels: Label sets by the name of their prompts; empty if the data has none.
        captioned: Whether its records have captions.
    """

    split_dir: str
    labels: Mapping[str, LabelSet] = field(default_factory=dict)
    captioned: bool = True


def open_split(folder: Path, split: str | None, option: str, scratch: Path) -> JudgedData:
    """Opens a split of a folder.

    Args:
        folder: Folder of TFRecord shards, or of splits, or of a benchmark in the layout of
            CLIP_benchmark's WebDatasets.
        split: Name of the split; None for `eval`, or `test` of a benchmark.
        option: Option of the command that names the folder, for error messages.
        scratch: Folder for temporary files.

    Raises:
        ValueError: If the folder is none of these, or a sample of a benchmark cannot be read.
    """
    from sigline.components.ingest import clip_benchmark

    ours, theirs = split or record.EVAL_SPLIT, split or clip_benchmark.TEST_SPLIT
    if clip_benchmark.has_split(folder, theirs):
        return _converted(clip_benchmark.open_split(folder, theirs), scratch)
    for split_dir in (folder / _SPLIT_FOLDER.format(ours), folder):
        if any(split_dir.glob("*.gz")):
            return JudgedData(str(split_dir))
    raise ValueError(
        f"{option} must be a folder of TFRecord shards (*.gz), or have "
        f"{_SPLIT_FOLDER.format(ours)} below it, or {theirs}/nshards.txt, as "
        f"CLIP_benchmark's have. Received: {folder}"
    )


def _converted(benchmark, scratch: Path) -> JudgedData:
    """Converts each shard of a benchmark to a TFRecord shard, with the samples in order."""
    from sigline.components.evaluate.views import DEFAULT_PROMPTS
    from sigline.components.ingest import clip_benchmark
    from sigline.components.shared.files import BeamFiles
    from sigline.schemas import tf_example

    folder = scratch / f"benchmark-{len(list(scratch.glob('benchmark-*')))}"
    folder.mkdir(parents=True)
    count = len(benchmark.shards)
    for number, shard in enumerate(benchmark.shards):
        records = clip_benchmark.records(benchmark, shard, BeamFiles())
        path = folder / f"data_tfrecord-{number:05d}-of-{count:05d}.gz"
        tf_example.write_shard(str(path), map(tf_example.encode, records))
    labels = {} if benchmark.labels is None else {DEFAULT_PROMPTS: benchmark.labels}
    return JudgedData(str(folder), labels, benchmark.type == clip_benchmark.RETRIEVAL)


def label_sets(assignments: Sequence[str]) -> dict[str, LabelSet]:
    """Returns label sets by the name of their prompts, from `[NAME=]FILE`."""
    from sigline.components.evaluate.views import DEFAULT_PROMPTS

    label_sets_by_name = {}
    for assignment in assignments:
        name, separator, path = assignment.partition("=")
        name, path = (name, path) if separator else (DEFAULT_PROMPTS, assignment)
        if name in label_sets_by_name:
            raise ValueError(
                f"--labels must each have another NAME. Received: {assignment}, after another file "
                f"for {name}"
            )
        try:
            label_sets_by_name[name] = LabelSet.from_json(Path(path).read_text())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--labels must be label sets. Received: {path}: {error}") from None
    return label_sets_by_name
