"""Converts `TensorProto` from and to NumPy without TensorFlow, which the client does not need."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

STRING = 7
# By number of TensorFlow's DataType: the NumPy type, and the repeated field that holds its values.
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
# NumPy allows twice as many. Without a limit, multiplying very many sizes would already take long.
_MAX_RANK = 32
# The tag of `float_val`: field 5, wire type 2 (length-delimited).
_FLOAT_VAL = b"\x2a"


def to_array(
    proto: Any, *, max_bytes: int = MAX_TENSOR_BYTES, max_strings: int = MAX_STRINGS
) -> np.ndarray:
    """Returns the array of a `TensorProto`; strings as objects of type bytes.

    Args:
        proto: The message.
        max_bytes: Largest size of an array of numbers. A message with a single number may have a
            shape of gigabytes, since its last value is repeated.
        max_strings: Most strings.

    Raises:
        ValueError: If the type is not supported, or the values do not match the shape.
    """
    if len(proto.tensor_shape.dim) > _MAX_RANK:
        raise ValueError(
            f"a tensor may have {_MAX_RANK} axes. Received: {len(proto.tensor_shape.dim)}"
        )
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError(
            "a tensor must have a known shape. "
            f"Received: {'an unknown rank' if proto.tensor_shape.unknown_rank else shape}"
        )
    count = math.prod(shape)
    if proto.dtype == STRING:
        if proto.tensor_content:
            raise ValueError(
                "strings must be in string_val, not in tensor_content. "
                f"Received: {len(proto.tensor_content)} bytes of tensor_content"
            )
        return _strings(proto.string_val, shape, count, max_strings)
    dtype, name = _kind(proto.dtype)
    if count * dtype.itemsize > max_bytes:
        raise ValueError(
            f"a tensor may have {max_bytes} bytes. Received: {count * dtype.itemsize}; "
            "send several requests"
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
        raise ValueError(
            f"{name} must have at most {count} values for the shape {shape}. "
            f"Received: {len(values)}"
        )
    # Small integers are sent as wider ones, so their range must be checked before the cast.
    info = np.iinfo(dtype) if dtype.kind in "iu" else None
    array = np.array(values, np.int64 if info and dtype.itemsize < 8 else dtype)
    if info and len(array) and not (info.min <= array.min() and array.max() <= info.max):
        raise ValueError(
            f"values must fit into {dtype.name}. Received: {array.min()} to {array.max()}"
        )
    return _filled(array.astype(dtype), count).reshape(shape)


def _kind(dtype: int) -> tuple[np.dtype, str]:
    if dtype not in _KINDS:
        names = ", ".join(f"{number} ({kind.name})" for number, (kind, _) in _KINDS.items())
        raise ValueError(
            f"numbers must be of one of the DataTypes {names}. Received: DataType {dtype}"
        )
    return _KINDS[dtype]


def _strings(values: Any, shape: list[int], count: int, max_strings: int) -> np.ndarray:
    if len(values) > max_strings:
        raise ValueError(
            f"an input may have {max_strings} items. Received: {len(values)}; send several requests"
        )
    if count != len(values):
        raise ValueError(
            f"string_val must have {count} values for the shape {shape}. Received: {len(values)}"
        )
    array = np.empty(count, object)
    array[:] = list(values)
    return array.reshape(shape)


def _filled(values: np.ndarray, count: int) -> np.ndarray:
    """Repeats the last value up to a count, as TensorFlow does; no value stands for zeros."""
    if len(values) == count:
        return values
    last = values[-1] if len(values) else np.zeros((), values.dtype)[()]
    return np.concatenate([values, np.full(count - len(values), last, values.dtype)])


def as_type(array: np.ndarray, dtype: int) -> np.ndarray:
    """Converts an array of numbers to a DataType.

    Raises:
        ValueError: If the type is not supported, or a number does not fit it.
    """
    target, _ = _kind(dtype)
    try:
        # An overflow is found below, or by the cast itself, without NumPy's warning.
        with np.errstate(all="ignore"):
            converted = array.astype(target)
    except (OverflowError, ValueError) as error:
        raise ValueError(f"values must fit into {target.name}. Received: {error}") from None
    if target.kind in "iub" and not (converted == array).all():
        wrong = array[converted != array].ravel()[0]
        raise ValueError(f"values must fit into {target.name}. Received: {wrong}")
    return converted


def to_arrays(
    inputs: Mapping[str, Any],
    *,
    max_bytes: int = MAX_TENSOR_BYTES,
    max_strings: int = MAX_STRINGS,
) -> dict[str, np.ndarray]:
    """Returns the arrays of a request's tensors by name; the limits apply to each tensor."""
    return {
        name: to_array(proto, max_bytes=max_bytes, max_strings=max_strings)
        for name, proto in inputs.items()
    }


def fill(proto: Any, array: np.ndarray) -> None:
    """Writes an array into an empty `TensorProto`.

    It uses the typed fields such as `float_val`, since many clients read only these.

    Args:
        proto: The message.
        array: Numbers, or strings as bytes or str.

    Raises:
        TypeError: If the type of the array is not supported.
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
        raise TypeError(
            f"An array must be of strings or of one of {', '.join(map(str, _NUMBERS))}. "
            f"Received: dtype={array.dtype.name}"
        )
    proto.dtype = _NUMBERS[array.dtype]
    if array.dtype == np.float32:
        # A packed field has the bytes of the array, and copying takes a hundredth of the time.
        content = array.astype("<f4").tobytes()
        proto.MergeFromString(_FLOAT_VAL + _varint(len(content)) + content)
        return
    field = getattr(proto, _KINDS[proto.dtype][1])
    field.extend(array.ravel().tolist())


def _varint(value: int) -> bytes:
    """Encodes an integer as protobuf does: 7 bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
