"""TFRecord files of `tf.Example`, such as those of TensorFlow Datasets, TFX and img2dataset."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from sigline.components.ingest import reasons
from sigline.components.ingest.compression import DAMAGED, decompressed, without_suffix
from sigline.components.ingest.readers.values import pair_of
from sigline.components.ingest.sources import (
    Columns,
    Files,
    Part,
    Problem,
    RawPair,
    SourceConfig,
    family,
)
from sigline.schemas import tfrecord

_NAME = re.compile(r"\.tfrecords?$|tfrecord[^/]*-\d+-of-\d+$")
# Bytes that a record may hold besides its image.
_OTHER_BYTES = 2**20


class TFRecordReader:
    """Records whose features are the columns; compressed or not, as their first bytes tell."""

    def accepts(self, path: str) -> bool:
        """Whether a file holds TFRecords, by its name."""
        return _NAME.search(without_suffix(path)) is not None

    def parts(self, path: str, files: Files, config: SourceConfig) -> Iterator[Part]:
        """Yields the whole file as one part: records can only be read one after the other."""
        yield Part(path)

    def scan(
        self, part: Part, files: Files, config: SourceConfig, max_image_bytes: int
    ) -> Iterator[RawPair]:
        """Yields a pair for each record; a damaged one is known by its checksum."""

        def to_pair(values: dict[str, Any], number: int) -> RawPair:
            columns = Columns.choose(values, config)
            return pair_of(
                values, columns, config, shard=part.path, position=number, names_vary=True
            )

        yield from pairs_of(part.path, files, max_image_bytes, to_pair)


def pairs_of(
    path: str,
    files: Files,
    max_image_bytes: int,
    to_pair: Callable[[dict[str, Any], int], RawPair],
) -> Iterator[RawPair]:
    """Yields a pair for each record of a file; `to_pair` takes its values and its number."""
    # Imported here, so that only workers that read records load TensorFlow.
    from sigline.schemas import tf_example

    number = 0
    about: dict[str, Any] = {"key": "", "source": family(path), "shard": path}
    with files.open(path) as raw, decompressed(raw) as handle:
        try:
            limit = max_image_bytes + _OTHER_BYTES
            for number, record in enumerate(tfrecord.records(handle.read, largest=limit)):
                if isinstance(record, tfrecord.Place):
                    detail = f"record {record.record} at byte {record.offset}: {record.reason}"
                    problem = Problem(reasons.DAMAGED_ARCHIVE, detail)
                    yield RawPair(**about, position=number, problem=problem)
                    continue
                try:
                    features = tf_example.features(record)
                except ValueError as error:
                    problem = Problem(reasons.INVALID_ROW, str(error))
                    yield RawPair(**about, position=number, problem=problem)
                    continue
                values = {n: v[0] if len(v) == 1 else v for n, v in sorted(features.items())}
                yield to_pair(values, number)
        except DAMAGED as error:
            detail = f"the rest of the file is unreadable: {error}"
            problem = Problem(reasons.DAMAGED_ARCHIVE, detail)
            yield RawPair(**about, position=number + 1, problem=problem)
