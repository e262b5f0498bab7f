"""TF Serving's gRPC services, with its status codes and messages.

One client works against TF Serving and this server, so messages that TF Serving has too keep its
words.

Methods run in threads; they take a message and a `calls.Call`, and raise RequestFailed.
"""

import contextlib
from collections.abc import Iterator

import grpc
import numpy as np
from google.protobuf import any_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
)

from sigline.schemas import signatures
from sigline.serving.protocol import tensors
from sigline.serving.server import failures, model_config
from sigline.serving.server.engine import LoadedVersion
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.requests import Requests, Target

_ENTRYPOINT = "GRPC"
# Name of the input of TF Serving's classification and regression signatures.
_EXAMPLES = "inputs"
_MAX_RELOAD_SECONDS = 300.0


class PredictionService:
    """Predict and GetModelMetadata; Classify and Regress are always refused."""

    def __init__(self, requests: Requests):
        """Takes the object that answers requests."""
        self._requests = requests

    def Predict(self, request, call):
        """Answers with the outputs of a signature, in typed fields, which many clients read."""
        target = _target(request.model_spec)
        with (
            _answered(),
            self._requests.observed(target.name, api="Predict", entrypoint=_ENTRYPOINT),
            self._requests.admitted(),
        ):
            if not request.HasField("model_spec"):
                raise failures.invalid("Missing ModelSpec")
            answer = self._requests.predict(
                target,
                lambda engine, signature: self._arrays(request, engine, signature),
                output_filter=list(request.output_filter),
                timeout_seconds=call.time_remaining(),
                on_wait=call.watch,
            )
            if not call.is_active():
                # Nobody reads the answer, so it need not be serialized.
                remaining = call.time_remaining()
                raise failures.deadline_passed() if remaining == 0 else failures.client_left()
            response = predict_pb2.PredictResponse()
            response.model_spec.name = target.name
            response.model_spec.version.value = answer.version
            response.model_spec.signature_name = answer.signature
            for name, value in answer.outputs.items():
                tensors.fill(response.outputs[name], value)
            return response

    def _arrays(self, request, engine: LoadedVersion, signature: str) -> dict[str, np.ndarray]:
        """Reads the inputs, after cheap checks: a small message may claim gigabytes."""
        types = {name: proto.dtype for name, proto in request.inputs.items()}
        engine.check_types(signature, types)
        limits = self._requests.limits
        return tensors.to_arrays(
            request.inputs, max_bytes=limits.max_message_bytes, max_strings=limits.max_items
        )

    def GetModelMetadata(self, request, call):
        """Answers with the signatures of a version."""
        target = _target(request.model_spec)
        with (
            _answered(),
            self._requests.observed(target.name, api="GetModelMetadata", entrypoint=_ENTRYPOINT),
        ):
            if not request.HasField("model_spec"):
                raise failures.invalid("Missing ModelSpec")
            if not request.metadata_field:
                raise failures.invalid(
                    "GetModelMetadataRequest must specify at least one metadata_field: "
                    "signature_def"
                )
            for name in request.metadata_field:
                if name != "signature_def":
                    raise failures.invalid(
                        f"Metadata field {name} is not supported; ask for signature_def"
                    )
            return metadata(self._requests, target)

    def Classify(self, request, call):
        """Refuses serialized examples, which no signature of the model contract takes."""
        self._refuse_examples(request, call, "Classify", "classification", 2)

    def Regress(self, request, call):
        """Refuses serialized examples, which no signature of the model contract takes."""
        self._refuse_examples(request, call, "Regress", "regression", 1)

    def _refuse_examples(self, request, call, api: str, kind: str, max_outputs: int) -> None:
        """Raises the error that TF Serving would, in the order of its checks."""
        target = _target(request.model_spec)
        with (
            _answered(),
            self._requests.observed(target.name, api=api, entrypoint=_ENTRYPOINT),
        ):
            if not target.name:
                raise failures.invalid("ModelSpec has no name specified")
            name = target.signature or signatures.SERVING_DEFAULT
            with self._requests.models.lease(
                target.name, version=target.version, label=target.label
            ) as served:
                definition = served.engine.definition(name)
            if len(definition.inputs) != 1:
                raise failures.invalid("Expected one input Tensor.")
            if len(definition.outputs) > max_outputs:
                words = {1: "one output Tensor", 2: "one or two output Tensors"}[max_outputs]
                raise failures.invalid(f"Expected {words}, found {len(definition.outputs)}")
            if _EXAMPLES not in definition.inputs:
                raise failures.invalid(
                    f"No {kind} inputs found in SignatureDef of {name}: it takes "
                    f"{', '.join(definition.inputs)}; call Predict"
                )
            raise RequestFailed(
                grpc.StatusCode.UNIMPLEMENTED, f"This server answers Predict, not {api}"
            )


class ModelService:
    """GetModelStatus, and HandleReloadConfigRequest if it is allowed."""

    def __init__(self, requests: Requests, *, allow_reload: bool):
        """Takes the object that answers requests, and whether clients may reload the config."""
        self._requests = requests
        self._allow_reload = allow_reload

    def GetModelStatus(self, request, call):
        """Answers with the states of versions; ignores a label, as TF Serving does."""
        target = _target(request.model_spec)
        with (
            _answered(),
            self._requests.observed(target.name, api="GetModelStatus", entrypoint=_ENTRYPOINT),
        ):
            if not request.HasField("model_spec"):
                raise failures.invalid("Missing ModelSpec")
            return status(self._requests, target)

    def HandleReloadConfigRequest(self, request, call):
        """Replaces the model config."""
        with (
            _answered(),
            self._requests.observed("", api="HandleReloadConfigRequest", entrypoint=_ENTRYPOINT),
        ):
            if not self._allow_reload:
                raise RequestFailed(
                    grpc.StatusCode.PERMISSION_DENIED,
                    "Clients may not say which folders are served; start with --allow-reload",
                )
            try:
                models = model_config.from_proto(request.config)
            except ValueError as error:
                raise failures.invalid(str(error)) from error
            self._requests.models.reload(models, timeout_seconds=_reload_seconds(call))
            return model_management_pb2.ReloadConfigResponse()


def status(requests: Requests, target: Target) -> get_model_status_pb2.GetModelStatusResponse:
    """Returns the states of a model's versions."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for item in requests.models.statuses(target.name, target.version):
        entry = response.model_version_status.add(version=item.version, state=int(item.state))
        if item.error:
            entry.status.error_code = grpc.StatusCode.UNKNOWN.value[0]
            entry.status.error_message = item.error
        else:
            entry.status.error_message = item.note
            # An empty status must still be present, as TF Serving sends it.
            entry.status.SetInParent()
    return response


def metadata(requests: Requests, target: Target) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Returns the signatures of a version."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    signature_map = get_model_metadata_pb2.SignatureDefMap()
    if not target.name:
        raise failures.invalid("ModelSpec has no name specified")
    with requests.models.lease(target.name, version=target.version, label=target.label) as served:
        for name, signature in served.engine.metadata_signature_defs.items():
            signature_map.signature_def[name].CopyFrom(signature)
        response.model_spec.version.value = served.version
    response.model_spec.name = target.name
    packed = any_pb2.Any()
    packed.Pack(signature_map)
    response.metadata["signature_def"].CopyFrom(packed)
    return response


def _target(spec) -> Target:
    version = spec.version.value if spec.HasField("version") else None
    return Target(spec.name, version, spec.version_label, spec.signature_name)


def _reload_seconds(call) -> float:
    """Returns how long a reload may take, so that its answer arrives before the deadline."""
    remaining = call.time_remaining()
    if remaining is None or remaining > _MAX_RELOAD_SECONDS:
        return _MAX_RELOAD_SECONDS
    return remaining - min(1.0, remaining / 2)


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Turns unexpected exceptions into failures, so that clients see no traceback."""
    try:
        yield
    except RequestFailed:
        raise
    except Exception as error:
        raise RequestFailed(
            grpc.StatusCode.INTERNAL, f"The server failed: {type(error).__name__}"
        ) from error
