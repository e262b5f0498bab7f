"""Files of tensors, and the folders that they are written to."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from sigline.schemas import atomic

_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file by name.

    Raises:
        ValueError: If the file is not whole, or a tensor is of a type that NumPy has not.
    """
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16
            value = bits.view(np.float32)
        elif entry["dtype"] in _TYPES:
            value = np.frombuffer(entry["data"], _TYPES[entry["dtype"]])
        else:
            raise ValueError(f"{path} holds {name} of unknown type {entry['dtype']}.")
        tensors[name] = value.reshape(entry["shape"])
    return tensors


def write(path: Path, tensors: Mapping[str, np.ndarray], **options) -> None:
    """Writes tensors by name as float32; takes the options of `safetensors.numpy.save_file`."""
    plain = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    # A scalar, which numpy makes contiguous as one dimension, keeps its shape.
    plain = {name: value.reshape(tensors[name].shape) for name, value in plain.items()}
    safetensors.numpy.save_file(plain, str(path), **options)


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes the folder when the block is done.

    Raises:
        ValueError: If the folder is there already.
    """
    if Path(folder).exists():
        raise ValueError(f"The folder must not be there yet. Received: {folder}")
    with atomic.new_folder(folder) as scratch:
        yield scratch
