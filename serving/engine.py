"""A loaded model version: checked inputs in, arrays out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  # Registers the tokenizer's operations.

_TAGS = ["serve"]


class InvalidRequest(ValueError):
    """A request that does not fit the model; the message is for the client."""


class UnknownSignature(KeyError):
    """A request for a signature that the model does not have."""


@dataclass(frozen=True)
class _Callable:
    run: object
    inputs: dict[str, tf.Tensor]
    outputs: dict[str, tf.Tensor]


class LoadedVersion:
    """A SavedModel in a session of its own.

    A session's callables cost about half of an eager signature call, and load through the same
    path as TF Serving.
    """

    def __init__(self, directory: str | Path, version: int):
        """Loads the model; raises TensorFlow's error if it cannot."""
        self.version = version
        graph = tf.Graph()
        with graph.as_default():
            self._session = tf.compat.v1.Session(graph=graph)
            meta_graph = tf.compat.v1.saved_model.load(self._session, _TAGS, str(directory))
        self.signature_defs = {
            name: signature
            for name, signature in meta_graph.signature_def.items()
            if signature.inputs
        }
        self._callables = {
            name: self._callable(graph, signature)
            for name, signature in self.signature_defs.items()
        }

    def _callable(self, graph: tf.Graph, signature) -> _Callable:
        inputs = {
            name: graph.get_tensor_by_name(info.name)
            for name, info in sorted(signature.inputs.items())
        }
        outputs = {
            name: graph.get_tensor_by_name(info.name)
            for name, info in sorted(signature.outputs.items())
        }
        run = self._session.make_callable(list(outputs.values()), feed_list=list(inputs.values()))
        return _Callable(run, inputs, outputs)

    def predict(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a signature.

        Raises:
            UnknownSignature: If the model has no such signature.
            InvalidRequest: If names, types or shapes of the inputs do not fit.
            tf.errors.OpError: If an operation fails, for instance on an undecodable image.
        """
        target = self._callables.get(signature)
        if target is None:
            raise UnknownSignature(signature)
        if inputs.keys() != target.inputs.keys():
            extra = ",".join(sorted(inputs.keys() - target.inputs.keys()))
            missing = ",".join(sorted(target.inputs.keys() - inputs.keys()))
            raise InvalidRequest(
                f"input size does not match signature: {len(inputs)}!={len(target.inputs)}. "
                f"Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
            )
        for name, tensor in target.inputs.items():
            _check_input(name, inputs[name], tensor)
        values = target.run(*(inputs[name] for name in target.inputs))  # type: ignore[operator]
        return dict(zip(target.outputs, values, strict=True))

    def close(self) -> None:
        """Frees the session."""
        self._session.close()


def _check_input(name: str, value: np.ndarray, tensor: tf.Tensor) -> None:
    # A session would cast silently.
    dtype = tf.string if value.dtype == object else tf.as_dtype(value.dtype)
    if dtype != tensor.dtype:
        raise InvalidRequest(f"input {name} must be {tensor.dtype.name}. Received: {dtype.name}")
    if not tensor.shape.is_compatible_with(value.shape):
        raise InvalidRequest(
            f"input {name} must have shape {tensor.shape}. Received: {tuple(value.shape)}"
        )
