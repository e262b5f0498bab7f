"""A client of TF Serving's protocols, gRPC and REST, for models with sigline's signatures.

It needs no TensorFlow, and works against sigline's server and stock TF Serving.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from sigline.schemas import progress, signatures
from sigline.serving.client.transport import (
    Answer,
    GrpcTransport,
    Inputs,
    Options,
    RequestError,
    RestTransport,
    open_channel,
    predict_codec,
    to_answer,
    to_request_error,
)
from sigline.serving.protocol import protos

# Sizes of a request, well below the limits of servers: bytes of encoded images, number of images,
# and number of texts.
_REQUEST_BYTES = 4 * 2**20
_REQUEST_ITEMS = 64
_REQUEST_TEXTS = 256
# Most concurrent requests of one call of `AsyncClient`.
_CONCURRENT_REQUESTS = 3
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Errors worth a retry: a server that restarts, or one that is full.
_RETRYABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_FIRST_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Match:
    """A file and its score for a query."""

    path: Path
    score: float


class Client:
    """A client of one model on a server, sigline's own or TF Serving."""

    def __init__(self, target: str, **options: Any):
        """Opens a connection.

        Args:
            target: `HOST:PORT` for gRPC, or `http://HOST:PORT` for REST.
            **options: Fields of `Options`.
        """
        self._target = target
        self._options = Options(**options)
        kind = RestTransport if target.startswith(("http://", "https://")) else GrpcTransport
        self._transport = kind(target, self._options)

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def ask(self, signature: str, inputs: Inputs) -> Answer:
        """Calls a signature with lists of strings, or arrays of numbers.

        Raises:
            RequestError: If the server cannot be reached or refuses; the message has its reason.
        """
        end = time.monotonic() + self._options.timeout_seconds
        for attempt in range(self._options.retries + 1):
            remaining = end - time.monotonic()
            try:
                return self._transport.send(signature, inputs, max(remaining, 1e-3))
            except RequestError as error:
                pause = _pause(attempt)
                last = attempt == self._options.retries
                if last or error.code not in _RETRYABLE or time.monotonic() + pause >= end:
                    raise _with_target(self._target, error) from error
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def predict(self, signature: str, inputs: Inputs) -> dict[str, np.ndarray]:
        """Calls a signature as `ask` does, and returns only the outputs."""
        return self.ask(signature, inputs).outputs

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns unit vectors, shape `(texts, dim)`; many texts are sent in several requests."""
        parts = [
            self.predict(signatures.EMBED_TEXT, {signatures.TEXT: part})[signatures.EMBEDDING]
            for part in _text_batches(texts)
        ]
        return np.concatenate(parts)

    def embed_images(self, images: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Returns unit vectors `(images, dim)`, and which images are valid; others are zeros."""
        answers = [
            self.predict(signatures.EMBED_IMAGE_SAFE, {signatures.IMAGE_BYTES: part})
            for part in _image_batches(images)
        ]
        return _joined(answers)

    def embed_files(
        self, paths: Sequence[Path]
    ) -> Iterator[tuple[list[Path], np.ndarray, list[Path]]]:
        """Embeds image files, batch by batch.

        Yields:
            The files that the model could decode, their unit vectors `(files, dim)`, and the files
            that cannot be opened or decoded, which do not affect the others.
        """
        for batch in _file_batches(paths):
            contents = {path: content for path in batch if (content := _content(path)) is not None}
            vectors, valid = self.embed_images(list(contents.values()))
            decoded = [path for path, is_valid in zip(contents, valid, strict=True) if is_valid]
            progress.advance(len(batch), "images")
            yield decoded, vectors[valid], [path for path in batch if path not in set(decoded)]

    def compare(self, image: bytes, texts: Sequence[str]) -> np.ndarray:
        """Returns the probability that each text describes the image, shape `(texts,)`."""
        inputs = {signatures.IMAGE_BYTES: [image], signatures.TEXT: texts}
        return self.predict(signatures.SIMILARITY, inputs)[signatures.PROBABILITIES][0]

    def embed_classes(self, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """Returns a unit vector for each class: the normalized mean over its prompts.

        Args:
            names: Names of the classes.
            templates: Prompts with `{}` in place of the name, such as `a photo of {}`.

        Returns:
            Shape `(names, dim)`.
        """
        prompts = _prompts(names, templates)
        return _class_means(self.embed_texts(prompts), len(names))

    def classify(
        self, images: Sequence[bytes], names: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the cosines of images and classes `(images, names)`, and which images are valid.

        Zero-shot: a class is the mean of its prompts, as in `embed_classes`.
        """
        vectors, valid = self.embed_images(images)
        return vectors @ self.embed_classes(names, templates).T, valid

    def search(
        self, text: str, paths: Sequence[Path], *, top: int
    ) -> tuple[list[Match], list[Path]]:
        """Finds the images that a text describes best.

        Returns:
            The best matches with their cosine similarity, best first, and the files that the model
            cannot read as images.
        """
        query = self.embed_texts([text])[0]
        matches, unreadable = [], []
        for decoded, vectors, undecodable in self.embed_files(paths):
            unreadable += undecodable
            matches += [
                Match(path, float(score))
                for path, score in zip(decoded, vectors @ query, strict=True)
            ]
        matches.sort(key=lambda match: (-match.score, match.path))
        return matches[:top], unreadable


class AsyncClient:
    """A client for coroutines, as in a web backend, over gRPC, with the methods of `Client`."""

    def __init__(self, target: str, **options: Any):
        """Opens a channel to `HOST:PORT` in the running loop; options are fields of `Options`."""
        self._target = target
        self._options = Options(**options)
        self._channel = open_channel(grpc.aio, target, self._options)
        self._call = self._channel.unary_unary(protos.PREDICT, *predict_codec())

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def ask(self, signature: str, inputs: Inputs) -> Answer:
        """Calls a signature; as `Client.ask`."""
        request = self._options.request(signature, inputs)
        metadata = tuple(self._options.headers().items())
        end = time.monotonic() + self._options.timeout_seconds
        for attempt in range(self._options.retries + 1):
            remaining = max(end - time.monotonic(), 1e-3)
            try:
                return to_answer(await self._call(request, timeout=remaining, metadata=metadata))
            except grpc.RpcError as failure:
                error, pause = to_request_error(failure), _pause(attempt)
                last = attempt == self._options.retries
                if last or error.code not in _RETRYABLE or time.monotonic() + pause >= end:
                    raise _with_target(self._target, error) from failure
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def predict(self, signature: str, inputs: Inputs) -> dict[str, np.ndarray]:
        """Calls a signature and returns its outputs; as `Client.predict`."""
        return (await self.ask(signature, inputs)).outputs

    async def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts as `Client.embed_texts` does, with concurrent requests."""
        answers = await self._predict_all(
            signatures.EMBED_TEXT, signatures.TEXT, _text_batches(texts)
        )
        return np.concatenate([answer[signatures.EMBEDDING] for answer in answers])

    async def embed_images(self, images: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Embeds images as `Client.embed_images` does, with concurrent requests."""
        answers = await self._predict_all(
            signatures.EMBED_IMAGE_SAFE, signatures.IMAGE_BYTES, _image_batches(images)
        )
        return _joined(answers)

    async def _predict_all(
        self, signature: str, name: str, parts: Iterable[Sequence[Any]]
    ) -> list[dict[str, np.ndarray]]:
        # Few at a time, since a server admits a limited number of requests.
        semaphore = asyncio.Semaphore(_CONCURRENT_REQUESTS)

        async def ask(part: Sequence[Any]) -> dict[str, np.ndarray]:
            async with semaphore:
                return await self.predict(signature, {name: part})

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(part)) for part in parts]
        except BaseExceptionGroup as failures:
            # Callers expect a single error. The group has cancelled the other requests.
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def compare(self, image: bytes, texts: Sequence[str]) -> np.ndarray:
        """Compares an image with texts; as `Client.compare`."""
        inputs = {signatures.IMAGE_BYTES: [image], signatures.TEXT: texts}
        return (await self.predict(signatures.SIMILARITY, inputs))[signatures.PROBABILITIES][0]


def image_files(folder: str | Path) -> list[Path]:
    """Returns the JPEG and PNG files of a folder, sorted; `passed_over` returns the others.

    Raises:
        ValueError: If there are none.
    """
    files = sorted(path for path in Path(folder).iterdir() if _is_image_file(path))
    if not files:
        raise ValueError(
            f"images must be a folder with JPEG or PNG files. Received: images={folder}"
        )
    return files


def passed_over(folder: str | Path) -> dict[str, list[str]]:
    """Returns the names in a folder that `image_files` leaves out, sorted, by kind of file."""
    names: dict[str, list[str]] = {}
    for path in sorted(Path(folder).iterdir()):
        if _is_image_file(path):
            continue
        if path.is_symlink() and not path.exists():
            kind = "links that lead nowhere"
        elif path.is_dir():
            kind = "folders"
        else:
            kind = f"files that end in {path.suffix}" if path.suffix else "files without an ending"
        names.setdefault(kind, []).append(path.name)
    return names


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _with_target(target: str, error: RequestError) -> RequestError:
    return RequestError(f"{target} answered {error.code}: {error}", error.code)


def _pause(attempt: int) -> float:
    # Exponential backoff with jitter, so that clients that failed together do not retry together.
    return _FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.5)


def _joined(answers: Iterable[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    answers = list(answers)
    vectors = np.concatenate([answer[signatures.EMBEDDING] for answer in answers])
    return vectors, np.concatenate([answer[signatures.VALID] for answer in answers])


def _prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    if not names or not templates or any("{}" not in template for template in templates):
        raise ValueError(
            "There must be names of classes, and templates with {} in place of the name. "
            f"Received: {len(names)} names, templates={list(templates)}"
        )
    return [template.replace("{}", name) for name in names for template in templates]


def _class_means(vectors: np.ndarray, count: int) -> np.ndarray:
    means = vectors.reshape(count, -1, vectors.shape[-1]).mean(axis=1)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def _text_batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, max(len(texts), 1), _REQUEST_TEXTS):
        yield texts[start : start + _REQUEST_TEXTS]


def _image_batches(images: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    yield from _batches(images, [len(image) for image in images])
    if not images:
        yield images


def _file_batches(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    yield from _batches(paths, [_size(path) for path in paths])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # The file was removed, or is a broken link. Reading it will fail, and report it.
        return 0


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _batches(items: Sequence[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Yields the items in batches of limited number and bytes; a larger item is a batch alone."""
    batch, total = [], 0
    for item, size in zip(items, sizes, strict=True):
        if batch and (total + size > _REQUEST_BYTES or len(batch) == _REQUEST_ITEMS):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
