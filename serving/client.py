"""A client of TF Serving's gRPC protocol for models of the model contract."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from sigline.schemas import signatures

_MAX_MESSAGE_BYTES = 64 * 2**20
# Encoded bytes of images per request, well below the message limits of servers.
_REQUEST_BYTES = 4 * 2**20
_REQUEST_ITEMS = 64
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class RequestError(RuntimeError):
    """The server refused a request or could not be reached.

    Attributes:
        code: Name of the gRPC status, such as `INVALID_ARGUMENT`.
    """

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Match:
    """A file and its score for a query."""

    path: Path
    score: float


class Client:
    """Asks a server, sigline's own or TF Serving."""

    def __init__(self, target: str, *, model_name: str = "sigline", timeout_seconds: float = 30.0):
        """Opens a channel to `HOST:PORT`."""
        self._target = target
        self._model_name = model_name
        self._timeout_seconds = timeout_seconds
        options = [
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ]
        self._channel = grpc.insecure_channel(target, options=options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def predict(
        self, signature: str, inputs: dict[str, Sequence[bytes | str]]
    ) -> dict[str, np.ndarray]:
        """Calls a signature with lists of strings and returns its outputs.

        Raises:
            RequestError: If the server cannot be reached or refuses; the message has its reason.
        """
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._model_name
        request.model_spec.signature_name = signature
        for name, values in inputs.items():
            proto = request.inputs[name]
            proto.dtype = tf.string.as_datatype_enum
            proto.tensor_shape.dim.add(size=len(values))
            proto.string_val.extend(v.encode() if isinstance(v, str) else v for v in values)
        try:
            response = self._stub.Predict(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()  # type: ignore[attr-defined]  # grpc.Call
            message = f"{self._target} answered {code.name}: {details}"
            raise RequestError(message, code.name) from error
        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns unit vectors, shape `(texts, dim)`."""
        return self.predict(signatures.EMBED_TEXT, {signatures.TEXT: texts})[signatures.EMBEDDING]

    def embed_images(self, images: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Returns unit vectors `(images, dim)` and which images are valid; the rest are zeros."""
        answer = self.predict(signatures.EMBED_IMAGE_SAFE, {signatures.IMAGE_BYTES: images})
        return answer[signatures.EMBEDDING], answer[signatures.VALID]

    def compare(self, image: bytes, texts: Sequence[str]) -> np.ndarray:
        """Returns the probability that each text describes the image, shape `(texts,)`."""
        inputs = {signatures.IMAGE_BYTES: [image], signatures.TEXT: texts}
        return self.predict(signatures.SIMILARITY, inputs)[signatures.PROBABILITIES][0]

    def search(
        self, text: str, paths: Sequence[Path], *, top: int
    ) -> tuple[list[Match], list[Path]]:
        """Finds the images that a text describes best.

        Returns:
            The best matches with their cosine similarity, best first, and the files that are no
            images that the model reads.
        """
        query = self.embed_texts([text])[0]
        matches, unreadable = [], []
        for batch in _batches(paths):
            vectors, valid = self.embed_images([path.read_bytes() for path in batch])
            for path, score, good in zip(batch, vectors @ query, valid, strict=True):
                if good:
                    matches.append(Match(path, float(score)))
                else:
                    unreadable.append(path)
        matches.sort(key=lambda match: (-match.score, match.path))
        return matches[:top], unreadable


def image_files(folder: str | Path) -> list[Path]:
    """Returns the JPEG and PNG files of a folder, sorted.

    Raises:
        ValueError: If there are none.
    """
    files = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(
            f"images must be a folder with JPEG or PNG files. Received: images={folder}"
        )
    return files


def _batches(paths: Sequence[Path]):
    batch, size = [], 0
    for path in paths:
        length = path.stat().st_size
        if batch and (size + length > _REQUEST_BYTES or len(batch) == _REQUEST_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += length
    if batch:
        yield batch
