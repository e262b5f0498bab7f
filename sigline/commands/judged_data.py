"""What commands judge models by: splits of sigline's examples, or of CLIP_benchmark's folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sigline.schemas import record
from sigline.schemas.labels import LabelSet

_SPLIT_FOLDER = "Split-{}"


@dataclass(frozen=True)
class JudgedData:
    """A split.

    Attributes:
        split_dir: Folder of its TFRecord shards.
        labels: Classes by the name of their prompts, if the data says which; empty otherwise.
        captioned: Whether its records have captions of their own.
    """

    split_dir: str
    labels: Mapping[str, LabelSet] = field(default_factory=dict)
    captioned: bool = True


def open_split(folder: Path, split: str | None, option: str, scratch: Path) -> JudgedData:
    """Returns a split of a folder.

    Args:
        folder: TFRecord shards, or splits of them below it, or a benchmark in the layout of
            CLIP_benchmark's WebDatasets.
        split: Name of the split; None for `eval`, or a benchmark's `test`.
        option: Option of the command that names the folder, for errors.
        scratch: Folder for what is written meanwhile.

    Raises:
        ValueError: If the folder is none of these, or a sample of a benchmark cannot be read.
    """
    from sigline.components.ingest import clip_benchmark

    ours, theirs = split or record.EVAL_SPLIT, split or clip_benchmark.TEST_SPLIT
    if clip_benchmark.has_split(folder, theirs):
        return _converted(clip_benchmark.open_split(folder, theirs), scratch)
    for found in (folder / _SPLIT_FOLDER.format(ours), folder):
        if any(found.glob("*.gz")):
            return JudgedData(str(found))
    raise ValueError(
        f"{option} must be a folder of TFRecord shards (*.gz), or have "
        f"{_SPLIT_FOLDER.format(ours)} below it, or {theirs}/nshards.txt, as "
        f"CLIP_benchmark's have. Received: {folder}"
    )


def _converted(benchmark, scratch: Path) -> JudgedData:
    """Writes a benchmark as TFRecord shards, one for each of its own, all samples in order."""
    from sigline.components.evaluate.views import DEFAULT_PROMPTS
    from sigline.components.files import BeamFiles
    from sigline.components.ingest import clip_benchmark
    from sigline.schemas import tf_example

    folder = scratch / f"benchmark-{len(list(scratch.glob('benchmark-*')))}"
    folder.mkdir(parents=True)
    count = len(benchmark.shards)
    for number, shard in enumerate(benchmark.shards):
        found = clip_benchmark.records(benchmark, shard, BeamFiles())
        path = folder / f"data_tfrecord-{number:05d}-of-{count:05d}.gz"
        tf_example.write_shard(str(path), map(tf_example.encode, found))
    labels = {} if benchmark.labels is None else {DEFAULT_PROMPTS: benchmark.labels}
    return JudgedData(str(folder), labels, benchmark.type == clip_benchmark.RETRIEVAL)


def label_sets(assignments: Sequence[str]) -> dict[str, LabelSet]:
    """Returns label sets by the name of their prompts, from `[NAME=]FILE`."""
    from sigline.components.evaluate.views import DEFAULT_PROMPTS

    found = {}
    for assignment in assignments:
        name, separator, path = assignment.partition("=")
        name, path = (name, path) if separator else (DEFAULT_PROMPTS, assignment)
        if name in found:
            raise ValueError(f"--labels must have other names. Received: {assignment} again")
        try:
            found[name] = LabelSet.from_json(Path(path).read_text())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--labels must be label sets. Received: {path}: {error}") from None
    return found
