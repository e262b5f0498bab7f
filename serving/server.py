"""A server for one machine that speaks TF Serving's gRPC protocol.

It answers PredictionService Predict and GetModelMetadata and ModelService GetModelStatus with the
status codes of TF Serving, so that one client and one test work against both. It serves the newest
version that stands in the folder when it starts.
"""

import math
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import any_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from sigline.schemas import signatures, versions
from sigline.serving.engine import InvalidRequest, LoadedVersion, UnknownSignature

DEFAULT_MODEL_NAME = "sigline"
DEFAULT_PORT = 8500
MAX_MESSAGE_BYTES = 16 * 2**20
_MAX_STATUS_CHARS = 1024
_GRAPH_ERROR_HEADING = "Graph execution error:"
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ModelServer:
    """A gRPC server with one model."""

    def __init__(
        self,
        base_path: str | Path,
        *,
        model_name: str = DEFAULT_MODEL_NAME,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        num_threads: int = 16,
    ):
        """Loads the newest version and binds the port; 0 takes a free one, see `port`.

        Raises:
            ValueError: If the folder holds no version, or the newest does not match its manifest.
            OSError: If the port is taken.
        """
        version, directory = newest_version(base_path)
        self.model = LoadedVersion(directory, version)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(num_threads),
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            ),
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _PredictionService(model_name, self.model), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            _ModelService(model_name, self.model), self._server
        )
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"port must be free. Received: host={host}, port={port}") from error
        self.address = f"{host}:{self.port}"

    def start(self) -> None:
        """Begins to answer requests."""
        self._server.start()

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Stops accepting requests, lets those in flight finish, and frees the model."""
        self._server.stop(grace_seconds).wait()
        self.model.close()


def newest_version(base_path: str | Path) -> tuple[int, Path]:
    """Returns the newest version of a serving folder and its directory.

    Raises:
        ValueError: If there is none, or its files do not match the manifest beside them.
    """
    found = versions.list_versions(base_path)
    if not found:
        raise ValueError(
            "base_path must hold a version directory such as 1/saved_model.pb. "
            f"Received: base_path={base_path}"
        )
    directory = Path(base_path) / str(found[-1])
    if (directory / versions.MANIFEST).is_file() and versions.verify(directory) is None:
        raise ValueError(
            f"Version {found[-1]} does not match its manifest; publish the model again. "
            f"Received: base_path={base_path}"
        )
    return found[-1], directory


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model_name: str, model: LoadedVersion):
        self._model_name = model_name
        self._model = model

    def Predict(self, request, context):
        if not request.HasField("model_spec"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        _check_model(request.model_spec, self._model_name, self._model, context)
        signature = request.model_spec.signature_name or signatures.SERVING_DEFAULT
        try:
            inputs = {name: _to_array(proto) for name, proto in request.inputs.items()}
            outputs = self._model.predict(signature, inputs)
        except UnknownSignature:
            message = f'Serving signature key "{signature}" not found.'
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        except (InvalidRequest, ValueError, TypeError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, _message(error))
        except tf.errors.OpError as error:
            context.abort(_GRPC_CODES[error.error_code], _message(error))
        return self._response(request, signature, outputs, context)

    def _response(self, request, signature: str, outputs: dict[str, np.ndarray], context):
        wanted = list(request.output_filter) or list(outputs)
        if len(set(wanted)) != len(wanted) or not set(wanted) <= outputs.keys():
            message = f"output_filter must name distinct outputs among {sorted(outputs)}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self._model_name
        response.model_spec.version.value = self._model.version
        response.model_spec.signature_name = signature
        for name in wanted:
            # TF Serving answers in typed fields, which many clients read directly.
            value = outputs[name]
            dtype = tf.string if value.dtype == object else tf.as_dtype(value.dtype)
            proto = response.outputs[name]
            proto.dtype = dtype.as_datatype_enum
            for size in value.shape:
                proto.tensor_shape.dim.add(size=size)
            _typed_field(proto, value).extend(value.ravel().tolist())
        return response

    def GetModelMetadata(self, request, context):
        _check_model(request.model_spec, self._model_name, self._model, context)
        if list(request.metadata_field) != ["signature_def"]:
            message = "Metadata field must be signature_def, the only one supported"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        signature_map = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in self._model.signature_defs.items():
            signature_map.signature_def[name].CopyFrom(signature)
        packed = any_pb2.Any()
        packed.Pack(signature_map)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self._model_name
        response.model_spec.version.value = self._model.version
        response.metadata["signature_def"].CopyFrom(packed)
        return response


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, model_name: str, model: LoadedVersion):
        self._model_name = model_name
        self._model = model

    def GetModelStatus(self, request, context):
        _check_model(request.model_spec, self._model_name, self._model, context)
        response = get_model_status_pb2.GetModelStatusResponse()
        status = response.model_version_status.add()
        status.version = self._model.version
        status.state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        return response


def _check_model(spec, name: str, model: LoadedVersion, context) -> None:
    if not spec.name:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified")
    if spec.version_label:
        message = f"Unrecognized servable version label: {spec.version_label}"
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
    asked = f"Latest({spec.name})"
    if spec.HasField("version"):
        asked = f"Specific({spec.name}, {spec.version.value})"
    if spec.name != name or (spec.HasField("version") and spec.version.value != model.version):
        context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")


def _to_array(proto) -> np.ndarray:
    if proto.dtype == tf.string.as_datatype_enum and not proto.tensor_content:
        shape = [dim.size for dim in proto.tensor_shape.dim]
        array = np.empty(len(proto.string_val), object)
        array[:] = list(proto.string_val)
        return array.reshape(shape)
    # A single value may stand for all: the size that is claimed is bounded before it is filled.
    size = math.prod(dim.size for dim in proto.tensor_shape.dim) * tf.as_dtype(proto.dtype).size
    if not 0 <= size <= MAX_MESSAGE_BYTES:
        raise ValueError(f"a tensor of {size} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return tf.make_ndarray(proto)


def _typed_field(proto, value: np.ndarray):
    if value.dtype == object:
        return proto.string_val
    if value.dtype == np.bool_:
        return proto.bool_val
    return proto.int_val if np.issubdtype(value.dtype, np.integer) else proto.float_val


def _message(error: Exception) -> str:
    """Returns the line that says what is wrong: the rest would show the graph to the client."""
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lines = [line for line in text.splitlines() if line and line != _GRAPH_ERROR_HEADING]
    return (lines or [type(error).__name__])[0][:_MAX_STATUS_CHARS]
