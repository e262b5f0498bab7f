"""Which records training can use: those that parse and have what the run needs of them."""

import re
import sys
from collections.abc import Mapping, Sequence

import tensorflow as tf

from sigline.schemas import record, tf_example
from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import data, labels, preprocess, shards
from sigline.trainer.inputs.needs import Needs


class Check:
    """Tries what training does with every record before it is changed at random."""

    def __init__(self, config: TrainConfig, needs: Needs, *, embedded: Mapping | None = None):
        """Builds the check.

        Args:
            config: The run's configuration.
            needs: What a batch holds: whether a record must have a caption, and labels.
            embedded: What embedded the images, as `shards.embeddings` says; None for pictures.
        """
        max_pixels = config.data.max_image_pixels
        dim = None if embedded is None else embedded["dim"]

        @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
        def use(serialized: tf.Tensor) -> tf.Tensor:
            example = tf_example.parse(serialized, embedding_dim=dim)
            if dim is None:
                used = [preprocess.decode_image(example[record.IMAGE], max_pixels=max_pixels)]
            else:
                used = [example[record.IMAGE_EMBEDDING]]
            count = tf.size(example[record.TEXT])
            used.append(tf.debugging.Assert((count > 0) | (not needs.texts), ["no caption"]))
            if needs.labels is not None:
                used.append(labels.row(example[record.LABEL], needs.labels))
            with tf.control_dependencies(used):
                return tf.identity(count)

        self._use = use

    def __call__(self, records: Sequence[bytes]) -> dict[int, str]:
        """Returns what is wrong, by the places in the sequence, of records that cannot be used.

        Raises:
            tf.errors.OpError: If something fails that is no record's fault.
        """
        if not records:
            return {}
        dataset = tf.data.Dataset.from_tensor_slices((tf.range(len(records)), list(records)))
        dataset = dataset.map(
            lambda place, item: (place, self._use(item)), num_parallel_calls=tf.data.AUTOTUNE
        ).ignore_errors()
        good = {int(place) for place, _ in dataset.as_numpy_iterator()}
        bad = sorted(set(range(len(records))) - good)
        problems = {}
        # Records are mapped one by one: an element that fails does not end the iterator.
        again = iter(
            tf.data.Dataset.from_tensor_slices([records[place] for place in bad]).map(self._use)
            if bad
            else ()
        )
        for place in bad:
            try:
                next(again)
            except tf.errors.InvalidArgumentError as error:
                problems[place] = f"key {_key(records[place])}: {_reason(error)}"
        return problems


def places(
    folders: shards.Folders,
    config: TrainConfig,
    check: Check,
    *,
    number: int,
    replaced: Mapping[str, str] | None = None,
) -> list[str]:
    """Returns a line for every record of a step that cannot be used: its shard, place and key.

    Args:
        folders: As in `data.training_batches`.
        config: The run's configuration.
        check: Tells which records cannot be used.
        number: Which step, counted from one.
        replaced: As in `data.training_batches`.
    """
    batch = data.batch_records(folders, config, number=number, replaced=replaced)
    problems = {batch[place]: reason for place, reason in check(batch).items()}
    if not problems:
        return []
    print("sigline: looking for the shard of a record that cannot be used", file=sys.stderr)
    lines = []
    for path in shards.expected_records(folders):
        for place, serialized in enumerate(tf_example.read_shard((replaced or {}).get(path, path))):
            if serialized in problems:
                lines.append(f"{path}: record {place}, {problems.pop(serialized)}")
                if not problems:
                    return lines
    return lines


def _key(serialized: bytes) -> str:
    """Returns the key of a record that may be anything."""
    try:
        return repr(tf_example.key(serialized))
    except Exception:  # No key, no text, or no record at all.
        return "unknown"


def _reason(error: tf.errors.OpError) -> str:
    """Returns what TensorFlow says of a record, without where in the graph it says so."""
    text = str(error.message).strip().splitlines()[0]
    text = re.sub(r"\{\{\w+ [^}]*\}\} ?", "", text)
    text = re.sub(r"^Error in user-defined function .* with iterator: \S+: ", "", text)
    return re.sub(r"^assertion failed: \[(.*)\]$", r"\1", text)[:200]
