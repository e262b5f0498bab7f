"""Bodies of TF Serving's REST API: JSON to the inputs of a signature, and outputs to JSON."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from sigline.serving.protocol import tensors
from sigline.serving.server import failures, lenient_base64

_BASE64 = "b64"
_BYTES_SUFFIX = "_bytes"
# Most lists and objects of a JSON body, and most values: as many as 1,024 vectors of 2,048 numbers.
_MAX_CONTAINERS, _MAX_VALUES = 65_536, 2_097_152
_JSON_TYPES = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """Returns the content of a body, which has `instances` (rows) or `inputs` (columns).

    Raises:
        RequestFailed: INVALID_ARGUMENT if it is no such content, or has too many values.
    """
    # `json.loads` holds Python's global lock for the whole body, and a small body of empty lists
    # takes long. So its size is estimated before: by brackets and commas, which strings may hold
    # too, but hardly as many.
    containers, values = body.count(b"[") + body.count(b"{"), body.count(b",")
    if containers > _MAX_CONTAINERS or values > _MAX_VALUES:
        raise failures.invalid(
            f"JSON may hold {_MAX_CONTAINERS} lists and objects, and {_MAX_VALUES} values. "
            f"Received: about {containers} and {values}; send several requests"
        )
    try:
        content = json.loads(body)
    except RecursionError:
        raise failures.invalid("JSON Parse error: nested too deeply") from None
    except ValueError as error:
        raise failures.invalid(f"JSON Parse error: {error}") from None
    if not isinstance(content, dict):
        raise failures.invalid(f"The body must be a JSON object. Received: {_json_type(content)}")
    if ("instances" in content) == ("inputs" in content):
        raise failures.invalid(
            f'The body must have either "instances" or "inputs". Received: {_json_type(content)}'
        )
    if "instances" in content and not (
        isinstance(content["instances"], list) and content["instances"]
    ):
        raise failures.invalid(
            '"instances" must be a list that is not empty. '
            f"Received: {_json_type(content['instances'])}"
        )
    return content


def signature(content: dict[str, Any]) -> str:
    """Returns the signature that a content names; empty for the default one."""
    name = content.get("signature_name", "")
    if not isinstance(name, str):
        raise failures.invalid(f"signature_name must be a string. Received: {_json_type(name)}")
    return name


def inputs(content: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the inputs of a request by name, from rows or from columns.

    Args:
        content: The parsed body, which has `instances` (rows) or `inputs` (columns).
        definitions: The `TensorInfo` of each input of the signature.

    Raises:
        ValueError: If values are missing or of another type or shape.
    """
    if "instances" in content:
        columns = _columns(content["instances"], definitions)
    else:
        columns = content["inputs"]
        # `{"b64": ...}` is a value of the only input, not an object of columns.
        if not isinstance(columns, dict) or (_BASE64 in columns and len(columns) == 1):
            columns = {_only_name(definitions): columns}
    arrays = {}
    for name, value in columns.items():
        # An unknown name is read as strings here, and refused when the names are checked.
        dtype = definitions[name].dtype if name in definitions else tensors.STRING
        arrays[name] = _array(name, value, dtype)
    return arrays


def _columns(rows: list[Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns of rows: objects with a name for each input, or values of the only one.

    Raises:
        ValueError: If rows have different names, or none where the signature has several inputs.
    """

    def is_named(row: Any) -> bool:
        return isinstance(row, dict) and not (_BASE64 in row and len(row) == 1)

    if not is_named(rows[0]):
        if any(is_named(row) for row in rows):
            raise ValueError(
                "instances must all be objects, or none of them. "
                f"Received: {_json_type(rows[0])} and objects"
            )
        return {_only_name(definitions): rows}
    names = rows[0].keys()
    for row in rows:
        if not is_named(row) or row.keys() != names:
            raise ValueError(
                f"every instance must have the same names: {', '.join(names)}. "
                f"Received: {_json_type(row)}"
            )
    return {name: [row[name] for row in rows] for name in names}


def _only_name(definitions: Mapping[str, Any]) -> str:
    if len(definitions) != 1:
        raise ValueError(
            f"inputs must be named: {', '.join(sorted(definitions))}. "
            "Received: values without names"
        )
    return next(iter(definitions))


def _array(name: str, value: Any, dtype: int) -> np.ndarray:
    if dtype != tensors.STRING:
        # As objects first: in an array of type str, each item takes the bytes of the longest one.
        array = np.array(value, dtype=object)
        for item in array.ravel():
            if not isinstance(item, bool | int | float):
                raise ValueError(
                    f"input {name} must hold numbers, in a regular shape. "
                    f"Received: {_json_type(item)}"
                )
        return tensors.as_type(array, dtype)
    # No signature takes strings of two axes, so deeper values are refused without walking them.
    rows = value if isinstance(value, list) else [value]
    if any(isinstance(row, list) for row in rows):
        raise ValueError(f"input {name} must be a list of strings. Received: a list of lists")
    array = np.empty(len(rows), object)
    array[:] = [_string(name, row) for row in rows]
    return array if isinstance(value, list) else array.reshape(())


def _string(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        # JSON can hold half of a surrogate pair, which has no UTF-8.
        return value.encode("utf-8", errors="replace")
    if isinstance(value, dict) and list(value) == [_BASE64] and isinstance(value[_BASE64], str):
        try:
            return lenient_base64.decode(value[_BASE64])
        except ValueError as error:
            raise ValueError(f"input {name} must hold base64. Received: {error}") from None
    raise ValueError(
        f'input {name} must hold strings, or {{"{_BASE64}": ...}} for bytes. '
        f"Received: {_json_type(value)}"
    )


def _jsonable(name: str, value: np.ndarray) -> Any:
    if value.dtype != object:
        return value.tolist()
    # TF Serving's convention: outputs whose name ends in `_bytes` are base64, others are text.
    if name.endswith(_BYTES_SUFFIX):
        coded = [{_BASE64: base64.b64encode(x).decode()} for x in value.ravel()]
    else:
        coded = [x.decode(errors="replace") for x in value.ravel()]
    array = np.empty(value.size, object)
    array[:] = coded
    return array.reshape(value.shape).tolist()


def answer(values: Mapping[str, np.ndarray], num_rows: int | None) -> dict[str, Any]:
    """Returns the content of an answer: by rows, as `instances` asks for, or by columns.

    Args:
        values: The outputs by name.
        num_rows: How many rows were sent; None for columns.

    Raises:
        RequestFailed: INVALID_ARGUMENT if an output has no row for each that was sent.
    """
    outputs = {name: _jsonable(name, value) for name, value in values.items()}
    if num_rows is None:
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
    for name, value in outputs.items():
        if not isinstance(value, list) or len(value) != num_rows:
            raise failures.invalid(
                f"Output {name} has no row for each of {num_rows} instances; send `inputs` instead"
            )
    if len(outputs) == 1:
        return {"predictions": next(iter(outputs.values()))}
    rows = zip(*outputs.values(), strict=True)
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]}


def metadata(response: get_model_metadata_pb2.GetModelMetadataResponse) -> str:
    """Returns metadata in TF Serving's layout: unpacked, and with empty fields."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    spec, signatures = (
        json_format.MessageToJson(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            indent=1,
        )
        for message in (response.model_spec, signatures)
    )
    return f'{{\n"model_spec":{spec},\n"metadata": {{"signature_def": {signatures}}}\n}}\n'


def _json_type(value: Any) -> str:
    """Returns what kind of JSON value it is, for error messages.

    They do not quote values: these may be private, and messages may be logged.
    """
    if isinstance(value, dict):
        return f"an object with {', '.join(value) or 'no names'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return _JSON_TYPES[type(value)]
