"""Readers of image-text sources, one for each format, behind one small interface."""

from sigline.components.ingest import sources
from sigline.components.ingest.readers.arrow import HuggingFaceReader, ParquetReader
from sigline.components.ingest.readers.folders import FolderReader
from sigline.components.ingest.readers.records import TFRecordReader
from sigline.components.ingest.readers.tables import ListReader, TableReader
from sigline.components.ingest.readers.tfds import TfdsReader
from sigline.components.ingest.readers.webdataset import WebDatasetReader

# The order in which an inventory asks the readers: it keeps companion files of shards, tables
# beside images and texts beside images from being taken for inputs of their own.
READERS: dict[str, sources.Reader] = {
    "webdataset": WebDatasetReader(),
    "tfds": TfdsReader(),
    "tfrecord": TFRecordReader(),
    "huggingface": HuggingFaceReader(),
    "parquet": ParquetReader(),
    "table": TableReader(),
    "list": ListReader(),
    "images": FolderReader(),
}
