"""Messages of TF Serving's Predict API and of its log, so that a client needs no TensorFlow.

They are in a descriptor pool of their own, since TensorFlow registers messages of the same names in
the default pool. Field numbers are those of TensorFlow's `tensor.proto`, and of TF Serving's
`predict.proto` and `prediction_log.proto`.
"""

from collections.abc import Iterator

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

PREDICT = "/tensorflow.serving.PredictionService/Predict"
_Field = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED
_TENSOR = ".tensorflow.TensorProto"
_SPEC = ".tensorflow.serving.ModelSpec"


def _add(
    message, name: str, number: int, kind: int, *, many: bool = False, type_name: str = ""
) -> None:
    """Adds a field to a message; `type_name` is that of the message that it holds."""
    label = _MANY if many else _ONE
    field = message.field.add(name=name, number=number, type=kind, label=label)
    if type_name:
        field.type_name = type_name


def _add_map(message, name: str, number: int, owner: str) -> None:
    """Adds a map from names to tensors to the message `owner`."""
    entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
    entry.options.map_entry = True
    _add(entry, "key", 1, _Field.TYPE_STRING)
    _add(entry, "value", 2, _Field.TYPE_MESSAGE, type_name=_TENSOR)
    type_name = f".tensorflow.serving.{owner}.{entry.name}"
    _add(message, name, number, _Field.TYPE_MESSAGE, many=True, type_name=type_name)


def _tensor_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="sigline/tensor.proto", package="tensorflow", syntax="proto3"
    )
    shape = file.message_type.add(name="TensorShapeProto")
    dim = shape.nested_type.add(name="Dim")
    _add(dim, "size", 1, _Field.TYPE_INT64)
    type_name = ".tensorflow.TensorShapeProto.Dim"
    _add(shape, "dim", 2, _Field.TYPE_MESSAGE, many=True, type_name=type_name)
    _add(shape, "unknown_rank", 3, _Field.TYPE_BOOL)
    tensor = file.message_type.add(name="TensorProto")
    # An enumeration in the original, which has the same encoding as an integer.
    _add(tensor, "dtype", 1, _Field.TYPE_INT32)
    _add(tensor, "tensor_shape", 2, _Field.TYPE_MESSAGE, type_name=".tensorflow.TensorShapeProto")
    _add(tensor, "tensor_content", 4, _Field.TYPE_BYTES)
    for name, number, kind in (
        ("float_val", 5, _Field.TYPE_FLOAT),
        ("double_val", 6, _Field.TYPE_DOUBLE),
        ("int_val", 7, _Field.TYPE_INT32),
        ("string_val", 8, _Field.TYPE_BYTES),
        ("int64_val", 10, _Field.TYPE_INT64),
        ("bool_val", 11, _Field.TYPE_BOOL),
        ("uint32_val", 16, _Field.TYPE_UINT32),
        ("uint64_val", 17, _Field.TYPE_UINT64),
    ):
        _add(tensor, name, number, kind, many=True)
    return file


def _predict_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="sigline/predict.proto", package="tensorflow.serving", syntax="proto3"
    )
    file.dependency.extend(["sigline/tensor.proto", wrappers_pb2.DESCRIPTOR.name])
    spec = file.message_type.add(name="ModelSpec")
    _add(spec, "name", 1, _Field.TYPE_STRING)
    _add(spec, "version", 2, _Field.TYPE_MESSAGE, type_name=".google.protobuf.Int64Value")
    _add(spec, "signature_name", 3, _Field.TYPE_STRING)
    _add(spec, "version_label", 4, _Field.TYPE_STRING)
    request = file.message_type.add(name="PredictRequest")
    _add(request, "model_spec", 1, _Field.TYPE_MESSAGE, type_name=_SPEC)
    _add_map(request, "inputs", 2, "PredictRequest")
    _add(request, "output_filter", 3, _Field.TYPE_STRING, many=True)
    response = file.message_type.add(name="PredictResponse")
    _add_map(response, "outputs", 1, "PredictResponse")
    _add(response, "model_spec", 2, _Field.TYPE_MESSAGE, type_name=_SPEC)
    log = file.message_type.add(name="PredictLog")
    _add(log, "request", 1, _Field.TYPE_MESSAGE, type_name=".tensorflow.serving.PredictRequest")
    log = file.message_type.add(name="PredictionLog")
    _add(log, "predict_log", 6, _Field.TYPE_MESSAGE, type_name=".tensorflow.serving.PredictLog")
    return file


def _messages() -> Iterator[type]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    for file in (_tensor_file(), _predict_file()):
        pool.AddSerializedFile(file.SerializeToString())
    for name in ("PredictRequest", "PredictResponse", "PredictionLog"):
        descriptor = pool.FindMessageTypeByName(f"tensorflow.serving.{name}")
        yield message_factory.GetMessageClass(descriptor)


PredictRequest, PredictResponse, PredictionLog = _messages()
