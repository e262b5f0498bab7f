"""Client of an index that TF Serving or sigline's server serves."""

from typing import Any

from sigline.schemas import retrieval, signatures
from sigline.schemas.retrieval import Match
from sigline.serving.client.client import Client


class ServedIndex:
    """An index that a server serves as one of its models."""

    def __init__(self, target: str, model_name: str = retrieval.DEFAULT_NAME, **options: Any):
        """Opens a connection; arguments are those of `Client`."""
        self._client = Client(target, model_name=model_name, **options)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def by_text(self, text: str, *, top: int) -> list[Match]:
        """Returns the images that a text describes best, the best first.

        Raises:
            RequestError: If the server cannot be reached or refuses; the message has its reason.
            ValueError: If the index returns fewer matches than `top`.
        """
        return self._find(retrieval.RETRIEVE_TEXT, {signatures.TEXT: [text]}, top)

    def by_image(self, encoded: bytes, *, top: int) -> list[Match]:
        """Returns the images that are nearest to an encoded JPEG or PNG; errors as `by_text`."""
        return self._find(retrieval.RETRIEVE_IMAGE, {signatures.IMAGE_BYTES: [encoded]}, top)

    def _find(self, signature: str, inputs: dict, top: int) -> list[Match]:
        answer = self._client.predict(signature, inputs)
        num_matches = len(answer[retrieval.ROW][0])
        if not 1 <= top <= num_matches:
            raise ValueError(f"top must be 1 to {num_matches}. Received: top={top}")
        names = (
            [_text(name) for name in answer[field][0][:top]]
            for field in (retrieval.KEY, retrieval.SOURCE)
        )
        numbers = (answer[field][0][:top].tolist() for field in (retrieval.SCORE, retrieval.ROW))
        return [Match(*values) for values in zip(*names, *numbers, strict=True)]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
