"""The shards of splits, what the manifest beside them says, and how their records are read."""

import concurrent.futures
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from sigline.schemas import digests, examples, record, tf_example
from sigline.trainer.inputs import selections

# One folder of a split, or several to mix.
Folders = str | Path | Sequence[str | Path]


class Split(NamedTuple):
    """The records of a split, shard by shard.

    Attributes:
        paths: The shards, or the repaired copies that stand for them.
        lengths: How many records each shard holds.
        visited: How many of them an epoch visits: all, or those that a selection chooses.
        bits: For each shard a bit for each record, which a selection chooses; None for all.
    """

    paths: list[str]
    lengths: list[int]
    visited: list[int]
    bits: list[bytes] | None = None

    @property
    def num_examples(self) -> int:
        """Records of an epoch."""
        return sum(self.visited)

    def visited_shards(self) -> "Split":
        """Returns the split without the shards that no epoch visits."""
        kept = [place for place, count in enumerate(self.visited) if count]

        def _kept(items: list[Any]) -> list[Any]:
            return [items[place] for place in kept]

        bits = None if self.bits is None else _kept(self.bits)
        return Split(_kept(self.paths), _kept(self.lengths), _kept(self.visited), bits)


def open_split(split_dir: str | Path, replaced: Mapping[str, str] | None = None) -> Split:
    """Returns the records of a split; counts them by reading it if no manifest says their numbers.

    Args:
        split_dir: The split's folder, or a selection's.
        replaced: Paths of files to read in place of shards.

    Raises:
        ValueError: If the folder holds no records, or not the shards that its manifest names.
        tf.errors.OpError: If a shard has to be read to count its records and cannot be.
    """
    expected = expected_records(split_dir)
    paths = [(replaced or {}).get(path, path) for path in expected]
    lengths = [count for count in expected.values() if count is not None]
    if len(lengths) < len(paths):
        lengths = _counted(paths)
    selection = selections.load(split_dir)
    visited, bits = lengths, None
    if selection is not None:
        chosen = [selection.shards[Path(path).name] for path in expected]
        visited, bits = [shard.selected for shard in chosen], [shard.bits for shard in chosen]
    if not any(visited):
        raise ValueError(f"The split holds no records. Received: split_dir={split_dir}")
    return Split(paths, lengths, visited, bits)


def reader(split: Split) -> Callable[..., tf.data.Dataset]:
    """Returns a function that reads visited records of a shard, inside of a graph.

    It takes the place of the shard in the split, how many visited records to leave out (none) and
    how many to read behind them (-1 for all). A shard that is shorter or longer than it should be
    is an error at its end, because it would shift all records behind it.
    """
    paths, lengths = tf.constant(split.paths), tf.constant(split.lengths, tf.int64)
    of_length = tf.data.experimental.assert_cardinality

    def read(
        place: tf.Tensor, first: tf.Tensor | int = 0, count: tf.Tensor | int = -1
    ) -> tf.data.Dataset:
        path, length = tf.gather(paths, place), tf.gather(lengths, place)
        dataset = tf.data.TFRecordDataset(path, compression_type=tf_example.COMPRESSION)
        if split.bits is None:
            # The file's own reader passes over records without making tensors of them.
            dataset = dataset.skip(first).apply(of_length(length - first))
        else:
            dataset = selections.only(dataset.apply(of_length(length)), place, split.bits)
            dataset = dataset.skip(first)
        return dataset.take(count)

    return read


def shard_files(split_dir: str | Path) -> list[str]:
    """Returns the TFRecord shards of a split, sorted; of a selection those it chooses from.

    Raises:
        ValueError: If there are none, or they are not those that ingest's manifest names.
    """
    split_dir = _records_dir(split_dir)
    files = sorted(str(path) for path in Path(split_dir).glob("*.gz"))
    manifest = _manifest(split_dir)
    if manifest is not None and {Path(file).name for file in files} != set(manifest["shards"]):
        raise ValueError(
            f"split_dir must hold the {len(manifest['shards'])} shards that the manifest beside it "
            f"names; copy the data again. Received: split_dir={split_dir} with {len(files)} shards"
        )
    if not files:
        raise ValueError(
            f"There are no TFRecord shards (*.gz) below split_dir. Received: split_dir={split_dir}"
        )
    return files


def listed(folders: Folders) -> list[Path]:
    """Returns the folders of one or several splits."""
    return [Path(folders)] if isinstance(folders, str | Path) else [Path(x) for x in folders]


def data_digest(folders: Folders) -> str:
    """Returns the digest of the splits' shards: names and bytes."""
    split_digests = []
    for split_dir in listed(folders):
        manifest = _manifest(split_dir)
        shards = (
            {Path(f).name: digests.file_digest(f) for f in shard_files(split_dir)}
            if manifest is None
            else examples.identity(manifest["shards"])
        )
        selection = selections.load(split_dir)
        if selection is not None:
            chosen = {name: shard.bits.hex() for name, shard in selection.shards.items()}
            shards = {"shards": shards, "chosen": chosen}
        split_digests.append(digests.json_digest(shards))
    return split_digests[0] if len(split_digests) == 1 else digests.json_digest(split_digests)


def shard_names(folders: Folders) -> dict[str, str]:
    """Returns a name for each shard that stays where the folders are moved: place and file name."""
    return {
        path: f"{place}/{Path(path).name}"
        for place, split_dir in enumerate(listed(folders))
        for path in shard_files(split_dir)
    }


def expected_records(folders: Folders) -> dict[str, int | None]:
    """Returns how many records each shard should have, None where no manifest says it."""
    counts: dict[str, int | None] = {}
    for split_dir in listed(folders):
        manifest = _manifest(split_dir)
        for path in shard_files(split_dir):
            counts[path] = manifest["shards"][Path(path).name]["records"] if manifest else None
    return counts


def embeddings(folders: Folders) -> dict | None:
    """Returns what embedded the images of the splits, as manifests say; None if nothing did.

    Raises:
        ValueError: If they differ in that.
    """
    towers = [
        _whole_manifest(_records_dir(split_dir)).get(record.MANIFEST_EMBEDDINGS)
        for split_dir in listed(folders)
    ]
    if any(tower != towers[0] for tower in towers):
        raise ValueError(
            "The images of all folders must be embedded by the same tower, or none. "
            f"Received: {', '.join(map(str, listed(folders)))}"
        )
    return towers[0]


def unreadable(
    folders: Folders, error: tf.errors.OpError, places: Sequence[str] = ()
) -> RuntimeError:
    """Returns the error of splits that cannot be read, naming what is damaged.

    Args:
        folders: The splits.
        error: What was raised.
        places: Records that cannot be used, if it is for them.
    """
    if places:
        return RuntimeError(
            "A record cannot be used; write its shard again, or allow such records by "
            f"run.max_damaged_records. Received: {'; '.join(places)}"
        )
    # A picture that does not decode is no reason to read every shard.
    in_the_file = not isinstance(error, tf.errors.InvalidArgumentError)
    damaged = damaged_shards(folders) if in_the_file else []
    if damaged:
        return RuntimeError(
            "Training data cannot be read; write these shards again: " + "; ".join(damaged)
        )
    reason = str(error.message).strip().splitlines()[0]
    names = ", ".join(map(str, listed(folders)))
    return RuntimeError(f"A record cannot be used. Received: {names}: {reason}")


def damaged_shards(folders: Folders) -> list[str]:
    """Returns a line for every shard that is not whole, by reading them all."""
    lines = []
    for path, expected in expected_records(folders).items():
        count = 0
        try:
            for _ in tf_example.read_shard(path):
                count += 1
        except tf.errors.OpError as error:
            reason = str(error.message).splitlines()[0]
            lines.append(f"{path} after {count} whole records: {reason}")
            continue
        if expected is not None and count != expected:
            lines.append(f"{path} has {count} records instead of {expected}")
    return lines


def _counted(paths: list[str]) -> list[int]:
    """Returns how many records each file holds, by reading them all, several at a time."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return [int(count) for count in pool.map(_counter(), paths)]


@functools.cache
def _counter() -> Callable[..., tf.Tensor]:
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def count(path: tf.Tensor) -> tf.Tensor:
        dataset = tf.data.TFRecordDataset(path, compression_type=tf_example.COMPRESSION)
        one_more = tf.autograph.experimental.do_not_convert(lambda count, _: count + 1)
        return dataset.reduce(tf.constant(0, tf.int64), one_more)

    return count


def _records_dir(split_dir: str | Path) -> Path:
    """Returns the folder of a split's shards: that which a selection chooses from, if it is one.

    Raises:
        ValueError: If the selection is of other shards than lie there now.
    """
    selection = selections.load(split_dir)
    if selection is None:
        return Path(split_dir)
    manifest = _manifest(selection.split_dir)
    if manifest is None or _digest(manifest["shards"]) != selection.shards_digest:
        raise ValueError(
            "The selection is of other shards than lie in its split's folder now; choose again. "
            f"Received: {split_dir}, a selection of {selection.split_dir}"
        )
    return Path(selection.split_dir)


def _digest(shards: dict) -> str:
    return digests.json_digest(examples.identity(shards))


def _manifest(split_dir: str | Path) -> dict | None:
    """Returns the split's part of the manifest that ingest writes beside the splits."""
    selection = selections.load(split_dir)
    split_dir = split_dir if selection is None else selection.split_dir
    splits = _whole_manifest(split_dir).get(record.MANIFEST_SPLITS, {})
    return splits.get(Path(split_dir).name.removeprefix("Split-"))


def _whole_manifest(split_dir: str | Path) -> dict:
    path = Path(split_dir).parent / record.MANIFEST_FILE
    return json.loads(path.read_text()) if path.is_file() else {}
