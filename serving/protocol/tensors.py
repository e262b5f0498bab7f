"""`TensorProto` from and to NumPy, without TensorFlow: the client needs no more than this."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

STRING = 7
# DT_ numbers of TensorFlow, the NumPy type, and the repeated field that holds its values.
_KINDS = {
    1: (np.dtype(np.float32), "float_val"),
    2: (np.dtype(np.float64), "double_val"),
    3: (np.dtype(np.int32), "int_val"),
    4: (np.dtype(np.uint8), "int_val"),
    5: (np.dtype(np.int16), "int_val"),
    6: (np.dtype(np.int8), "int_val"),
    9: (np.dtype(np.int64), "int64_val"),
    10: (np.dtype(np.bool_), "bool_val"),
    17: (np.dtype(np.uint16), "int_val"),
    22: (np.dtype(np.uint32), "uint32_val"),
    23: (np.dtype(np.uint64), "uint64_val"),
}
_NUMBERS = {dtype: number for number, (dtype, _) in _KINDS.items()}
MAX_TENSOR_BYTES = 64 * 2**20
MAX_STRINGS = 1 << 20
# NumPy's is twice that. The product of very many sizes alone would take long.
_MAX_RANK = 32
# Field 5, of wire type 2.
_FLOAT_VAL = b"\x2a"


def to_array(
    proto: Any, *, max_bytes: int = MAX_TENSOR_BYTES, max_strings: int = MAX_STRINGS
) -> np.ndarray:
    """Returns the array of a `TensorProto`; strings as objects of type bytes.

    Args:
        proto: The message.
        max_bytes: Largest size of numbers: a single one may stand for all of a shape that claims
            gigabytes.
        max_strings: Most strings.

    Raises:
        ValueError: If the type is none that is known, or values and shape do not fit.
    """
    if len(proto.tensor_shape.dim) > _MAX_RANK:
        raise ValueError(f"a tensor may have {_MAX_RANK} axes")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError(f"a tensor must have a known shape. Received: {shape}")
    count = math.prod(shape)
    if proto.dtype == STRING:
        if proto.tensor_content:
            raise ValueError("strings must be in string_val, not in tensor_content")
        return _strings(proto.string_val, shape, count, max_strings)
    if proto.dtype not in _KINDS:
        raise ValueError(f"tensors of DataType {proto.dtype} are not taken")
    dtype, name = _KINDS[proto.dtype]
    if count * dtype.itemsize > max_bytes:
        raise ValueError(
            f"a tensor of {count * dtype.itemsize} bytes is over the limit of {max_bytes}"
        )
    if proto.tensor_content:
        if len(proto.tensor_content) != count * dtype.itemsize:
            raise ValueError(
                f"tensor_content must hold {count * dtype.itemsize} bytes for the shape {shape}. "
                f"Received: {len(proto.tensor_content)}"
            )
        little = np.frombuffer(proto.tensor_content, dtype.newbyteorder("<"))
        return little.astype(dtype).reshape(shape)
    values = getattr(proto, name)
    if len(values) > count:
        raise ValueError(f"{len(values)} values are too many for the shape {shape}")
    info = np.iinfo(dtype) if dtype.kind in "iu" else None
    array = np.array(values, np.int64 if info and dtype.itemsize < 8 else dtype)
    if info and len(array) and not (info.min <= array.min() and array.max() <= info.max):
        raise ValueError(f"values must fit into {dtype.name}")
    return _filled(array.astype(dtype), count).reshape(shape)


def _strings(values: Any, shape: list[int], count: int, most: int) -> np.ndarray:
    if len(values) > most:
        raise ValueError(f"an input may have {most} items. Received: {len(values)}")
    if count != len(values):
        raise ValueError(
            f"string_val must have {count} values for {shape}. Received: {len(values)}"
        )
    array = np.empty(count, object)
    array[:] = list(values)
    return array.reshape(shape)


def _filled(values: np.ndarray, count: int) -> np.ndarray:
    """Repeats the last value up to a count, as TensorFlow reads it; none stands for zeros."""
    if len(values) == count:
        return values
    last = values[-1] if len(values) else np.zeros((), values.dtype)[()]
    return np.concatenate([values, np.full(count - len(values), last, values.dtype)])


def as_type(array: np.ndarray, dtype: int) -> np.ndarray:
    """Returns an array of numbers as one of a DataType.

    Raises:
        ValueError: If the type is none that is known, or the numbers do not fit it.
    """
    if dtype not in _KINDS:
        raise ValueError(f"tensors of DataType {dtype} are not taken")
    kind = _KINDS[dtype][0]
    try:
        with np.errstate(all="ignore"):
            found = array.astype(kind)
    except (OverflowError, ValueError) as error:
        raise ValueError(f"values must fit into {kind.name}: {error}") from None
    if kind.kind in "iub" and not (found == array).all():
        raise ValueError(f"values must fit into {kind.name}")
    return found


def to_arrays(
    inputs: Mapping[str, Any],
    *,
    max_bytes: int = MAX_TENSOR_BYTES,
    max_strings: int = MAX_STRINGS,
) -> dict[str, np.ndarray]:
    """Returns the arrays of the tensors of a request by name; the limits hold for each."""
    return {
        name: to_array(proto, max_bytes=max_bytes, max_strings=max_strings)
        for name, proto in inputs.items()
    }


def fill(proto: Any, array: np.ndarray) -> None:
    """Writes an array into an empty `TensorProto`, into the typed fields that many clients read.

    Args:
        proto: The message.
        array: Strings are bytes or str.

    Raises:
        TypeError: If the type of the array is none that is known.
    """
    array = np.asarray(array)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype.kind in "OSU":
        proto.dtype = STRING
        values = [x.encode() if isinstance(x, str) else x for x in array.ravel().tolist()]
        proto.string_val.extend(values)
        return
    if array.dtype not in _NUMBERS:
        raise TypeError(f"Arrays of {array.dtype.name} have no TensorProto here.")
    proto.dtype = _NUMBERS[array.dtype]
    if array.dtype == np.float32:
        # A packed field is, on the wire, what NumPy holds: this takes a hundredth of the time.
        content = array.astype("<f4").tobytes()
        proto.MergeFromString(_FLOAT_VAL + _varint(len(content)) + content)
        return
    field = getattr(proto, _KINDS[proto.dtype][1])
    field.extend(array.ravel().tolist())


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
