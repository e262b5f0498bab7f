"""Transport of a client's requests: gRPC or REST, with API keys and TLS certificates."""

import base64
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from sigline.schemas import signatures
from sigline.serving.protocol import protos, tensors

_MAX_MESSAGE_BYTES = 64 * 2**20
_HTTP_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# TF Serving's REST API leaves out the name of a single output.
_ONLY_OUTPUT = {
    signatures.SERVING_DEFAULT: signatures.EMBEDDING,
    signatures.EMBED_IMAGE: signatures.EMBEDDING,
    signatures.EMBED_TEXT: signatures.EMBEDDING,
}
Inputs = Mapping[str, Sequence[bytes] | Sequence[str] | np.ndarray]


class RequestError(RuntimeError):
    """The server refused a request or could not be reached.

    Attributes:
        code: Name of the gRPC status, such as `INVALID_ARGUMENT`.
    """

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Answer:
    """Outputs by name, and the version that computed them; None over REST, which does not say."""

    outputs: dict[str, np.ndarray]
    version: int | None


@dataclass(frozen=True)
class ClientTls:
    """PEM files of a client's TLS certificates.

    Attributes:
        ca: PEM file of the authority that signs the server's certificate. None for the authorities
            that the system trusts.
        certificate: PEM file of the client's certificate, for servers that ask for one (mTLS).
        key: PEM file of its private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns gRPC's credentials."""
        read = [
            None if x is None else x.read_bytes() for x in (self.ca, self.key, self.certificate)
        ]
        return grpc.ssl_channel_credentials(*read)

    def context(self) -> ssl.SSLContext:
        """Returns the context of HTTPS."""
        context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class Options:
    """Options of a client.

    Attributes:
        model_name: Name of the model.
        version: Its version; None for the newest that is served.
        label: Label of a version, instead of its number; empty for none.
        timeout_seconds: Time limit of a call, all attempts together.
        retries: Attempts after the first, if the server is unavailable or full.
        api_key: API key to send as `authorization: Bearer KEY`; None for none.
        tls: Certificates to trust and to show; None for plain text.
        grid: Patches along a side at which a model of several grids (FlexiViT) is to see images:
            few for speed, many for quality; None for the model's default.
    """

    model_name: str = "sigline"
    version: int | None = None
    label: str = ""
    timeout_seconds: float = 30.0
    retries: int = 3
    api_key: str | None = None
    tls: ClientTls | None = None
    grid: int | None = None

    def signature(self, name: str) -> str:
        """Returns the signature to call: for signatures of images, the one at the grid."""
        return signatures.at_grid(name, self.grid) if name in signatures.OF_IMAGES else name

    def headers(self) -> dict[str, str]:
        """Returns the headers of a request."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    def request(self, signature: str, inputs: Inputs) -> Any:
        """Returns a `PredictRequest` with lists of strings, and arrays of numbers, as inputs."""
        request: Any = protos.PredictRequest()
        request.model_spec.name = self.model_name
        request.model_spec.signature_name = self.signature(signature)
        if self.version is not None:
            request.model_spec.version.value = self.version
        elif self.label:
            request.model_spec.version_label = self.label
        for name, values in inputs.items():
            if isinstance(values, np.ndarray):
                tensors.fill(request.inputs[name], values)
                continue
            array = np.empty(len(values), object)
            array[:] = values
            tensors.fill(request.inputs[name], array)
        return request


class GrpcTransport:
    """Sends requests over gRPC."""

    def __init__(self, target: str, options: Options):
        """Opens a channel to `HOST:PORT`."""
        self._options = options
        self._channel = open_channel(grpc, target, options)
        self._call = self._channel.unary_unary(protos.PREDICT, *predict_codec())

    def send(self, signature: str, inputs: Inputs, timeout: float) -> Answer:
        """Asks once; raises RequestError if there is no answer."""
        request = self._options.request(signature, inputs)
        try:
            response = self._call(
                request, timeout=timeout, metadata=tuple(self._options.headers().items())
            )
        except grpc.RpcError as error:
            raise to_request_error(error) from error
        return to_answer(response)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class RestTransport:
    """Sends requests over REST."""

    def __init__(self, target: str, options: Options):
        """Takes `http://HOST:PORT`."""
        self._options = options
        base = f"{target.rstrip('/')}/v1/models/{options.model_name}"
        if options.version is not None:
            base += f"/versions/{options.version}"
        elif options.label:
            base += f"/labels/{options.label}"
        self._url = f"{base}:predict"
        context = options.tls.context() if options.tls is not None else None
        # urllib would send the API key along to whatever host a redirection names.
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), _NoRedirections
        )

    def send(self, signature: str, inputs: Inputs, timeout: float) -> Answer:
        """Asks once; raises RequestError if there is no answer."""
        columns = {
            name: values.tolist()
            if isinstance(values, np.ndarray)
            else [_json_of(x) for x in values]
            for name, values in inputs.items()
        }
        name = self._options.signature(signature)
        body = json.dumps({"signature_name": name, "inputs": columns}).encode()
        headers = self._options.headers() | {"content-type": "application/json"}
        request = urllib.request.Request(self._url, body, headers)
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                outputs = json.loads(answer.read())["outputs"]
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400:
                location = error.headers.get("Location", "an unnamed address")
                raise RequestError(
                    f"{self._url} redirects to {location}, which the client does not follow; use "
                    "that address as the target",
                    "FAILED_PRECONDITION",
                ) from error
            code = _HTTP_CODES.get(error.code, "INTERNAL")
            raise RequestError(_reason(error), code) from error
        except TimeoutError as error:
            raise RequestError(
                f"no answer within {timeout:.3g} seconds; allow more by timeout_seconds",
                "DEADLINE_EXCEEDED",
            ) from error
        except (urllib.error.URLError, OSError) as error:
            raise RequestError(str(getattr(error, "reason", error)), "UNAVAILABLE") from error
        if not isinstance(outputs, dict):
            outputs = {_ONLY_OUTPUT.get(signatures.split_grid(signature)[0], "outputs"): outputs}
        return Answer({name: _array_of(value) for name, value in outputs.items()}, None)

    def close(self) -> None:
        """Does nothing, since every request has a connection of its own."""


def open_channel(library: Any, target: str, options: Options) -> Any:
    """Returns a channel of `grpc` or `grpc.aio`."""
    settings = [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ]
    if options.tls is not None:
        return library.secure_channel(target, options.tls.credentials(), options=settings)
    return library.insecure_channel(target, options=settings)


def predict_codec() -> tuple[Any, Any]:
    """Returns the serializer of requests and the parser of responses, as gRPC takes them."""
    request: Any = protos.PredictRequest
    response: Any = protos.PredictResponse
    return request.SerializeToString, response.FromString


def to_answer(response: Any) -> Answer:
    """Converts a `PredictResponse`."""
    return Answer(tensors.to_arrays(response.outputs), int(response.model_spec.version.value))


def to_request_error(error: Any) -> RequestError:
    """Converts the error of a gRPC call."""
    return RequestError(error.details() or "no reason given", error.code().name)


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)


def _json_of(value: bytes | str) -> Any:
    return value if isinstance(value, str) else {"b64": base64.b64encode(value).decode()}


def _array_of(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return np.vectorize(str.encode, otypes=[object])(array) if array.dtype.kind == "U" else array
