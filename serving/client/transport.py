"""How a client's requests travel: over gRPC or REST, with keys and certificates."""

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
# Over REST the name of a lone output is left out.
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
    """Outputs by name, and the version that gave them; None over REST, which does not tell it."""

    outputs: dict[str, np.ndarray]
    version: int | None


@dataclass(frozen=True)
class ClientTls:
    """Files in PEM that a client trusts and shows.

    Attributes:
        ca: PEM file of who signs the server's certificate. None for whom the system trusts.
        certificate: PEM file that the client shows, for servers that ask for it (mTLS).
        key: PEM file of its private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns what gRPC needs."""
        read = [
            None if x is None else x.read_bytes() for x in (self.ca, self.key, self.certificate)
        ]
        return grpc.ssl_channel_credentials(*read)

    def context(self) -> ssl.SSLContext:
        """Returns what HTTPS needs."""
        context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class Options:
    """How a client asks.

    Attributes:
        model_name: The model.
        version: Its version; None for the newest that is served.
        label: The label of a version instead; empty for none.
        timeout_seconds: For an answer, all attempts together.
        retries: Attempts after the first, where the server is away or full.
        api_key: What is sent as `authorization: Bearer KEY`; None for none.
        tls: What is trusted and shown; None for plain text.
    """

    model_name: str = "sigline"
    version: int | None = None
    label: str = ""
    timeout_seconds: float = 30.0
    retries: int = 3
    api_key: str | None = None
    tls: ClientTls | None = None

    def headers(self) -> dict[str, str]:
        """Returns the headers of a request."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    def request(self, signature: str, inputs: Inputs) -> Any:
        """Returns a `PredictRequest`: of lists of strings, and of arrays of numbers."""
        request: Any = protos.PredictRequest()
        request.model_spec.name = self.model_name
        request.model_spec.signature_name = signature
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
        self._call = self._channel.unary_unary(protos.PREDICT, *coders())

    def send(self, signature: str, inputs: Inputs, timeout: float) -> Answer:
        """Asks once; raises RequestError if there is no answer."""
        request = self._options.request(signature, inputs)
        try:
            response = self._call(
                request, timeout=timeout, metadata=tuple(self._options.headers().items())
            )
        except grpc.RpcError as error:
            raise failure_of(error) from error
        return answer_of(response)

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
        # A redirection would take the key along, to whatever host it names.
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
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        headers = self._options.headers() | {"content-type": "application/json"}
        request = urllib.request.Request(self._url, body, headers)
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                outputs = json.loads(answer.read())["outputs"]
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400:
                place = error.headers.get("Location", "another place")
                raise RequestError(
                    f"{self._url} sends on to {place}, which is not followed; ask there",
                    "FAILED_PRECONDITION",
                ) from error
            code = _HTTP_CODES.get(error.code, "INTERNAL")
            raise RequestError(_reason(error), code) from error
        except TimeoutError as error:
            raise RequestError("no answer in time", "DEADLINE_EXCEEDED") from error
        except (urllib.error.URLError, OSError) as error:
            raise RequestError(str(getattr(error, "reason", error)), "UNAVAILABLE") from error
        if not isinstance(outputs, dict):
            outputs = {_ONLY_OUTPUT.get(signature, "outputs"): outputs}
        return Answer({name: _array_of(value) for name, value in outputs.items()}, None)

    def close(self) -> None:
        """Has nothing to close: every request has a connection of its own."""


def open_channel(library: Any, target: str, options: Options) -> Any:
    """Returns a channel of `grpc` or `grpc.aio`."""
    settings = [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ]
    if options.tls is not None:
        return library.secure_channel(target, options.tls.credentials(), options=settings)
    return library.insecure_channel(target, options=settings)


def coders() -> tuple[Any, Any]:
    """Returns what writes requests and reads responses."""
    request: Any = protos.PredictRequest
    response: Any = protos.PredictResponse
    return request.SerializeToString, response.FromString


def answer_of(response: Any) -> Answer:
    """Returns what a `PredictResponse` holds."""
    return Answer(tensors.to_arrays(response.outputs), int(response.model_spec.version.value))


def failure_of(error: Any) -> RequestError:
    """Returns the error of a gRPC status."""
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
