"""A loaded model version: checked inputs in, arrays out."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  # Registers the tokenizer's operations.
from tensorflow.core.protobuf import config_pb2

from sigline.schemas import signatures
from sigline.serving.server import failures
from sigline.serving.server.failures import RequestFailed

_TAGS = ["serve"]
_VARIABLES = "variables/variables.data-*"
# Bytes of weights below which one thread computes an operation. In a small model, several threads
# wait for each other longer than they compute; see `benchmarks/operation_threads.py`.
_SMALL_MODEL_BYTES = 32 * 2**20
# Without this, all sessions of a process share the thread pool of the first one, and its size.
os.environ.setdefault("TF_OVERRIDE_GLOBAL_THREADPOOL", "1")
# Runs a call in the calling thread: handing a short text over to TensorFlow's threads and waiting
# for them takes as long as embedding it. Signatures of images use the pool, which decodes many
# images at a time.
_IN_CALLING_THREAD = tf.compat.v1.RunOptions(inter_op_thread_pool=-1)
_IN_THREAD_POOL = tf.compat.v1.RunOptions()
# Sizes of a tensor's axes, None for any; None for any number of axes.
_Shape = tuple[int | None, ...] | None


class _Callable:
    """A signature that is ready to be called."""

    def __init__(self, session: tf.compat.v1.Session, signature):
        inputs, outputs = (dict(sorted(x.items())) for x in (signature.inputs, signature.outputs))
        self._session = session
        self._feed = [info.name for info in inputs.values()]
        self._fetch = [info.name for info in outputs.values()]
        self.types = {name: info.dtype for name, info in inputs.items()}
        self.inputs = {name: _shape(info) for name, info in inputs.items()}
        self.outputs = {name: _shape(info) for name, info in outputs.items()}

    @property
    def is_row_wise(self) -> bool:
        """Whether there is one input, and a row of every output for each of its rows."""
        shapes = [*self.inputs.values(), *self.outputs.values()]
        return len(self.inputs) == 1 and all(shape and shape[0] is None for shape in shapes)

    @functools.cached_property
    def run(self) -> Callable[..., Sequence[np.ndarray]]:
        """Takes the inputs in their order, and returns the outputs in theirs.

        Created on first use: TensorFlow optimizes the graph for each callable, which takes seconds.
        """
        options = _IN_THREAD_POOL if signatures.IMAGE_BYTES in self.inputs else _IN_CALLING_THREAD
        # The public `make_callable` looks up names and checks types again at every call, which
        # takes almost as long as embedding a short text.
        return self._session._make_callable_from_options(
            config_pb2.CallableOptions(feed=self._feed, fetch=self._fetch, run_options=options)
        )


class LoadedVersion:
    """A SavedModel in a session of its own.

    A session's callables take about half the time of eager signature calls, or less, and load
    through the same path as TF Serving.
    """

    def __init__(
        self, directory: str | Path, version: int, *, intra_op_parallelism: int | None = None
    ):
        """Loads the model.

        Args:
            directory: A SavedModel.
            version: Its number.
            intra_op_parallelism: Most threads that share an operation, 0 for one a core; by default
                one if the weights take less than 32 MiB, else one a core. No effect in a process
                that has used TensorFlow before this module was imported.

        Raises:
            tf.errors.OpError: If it cannot be loaded.
        """
        self.version = version
        if intra_op_parallelism is None:
            weights = sum(x.stat().st_size for x in Path(directory).glob(_VARIABLES))
            intra_op_parallelism = 1 if weights < _SMALL_MODEL_BYTES else 0
        graph = tf.Graph()
        config = tf.compat.v1.ConfigProto()
        # A spinning thread would keep a core from the threads that receive and answer.
        config.experimental.disable_thread_spinning = True
        config.intra_op_parallelism_threads = intra_op_parallelism
        with graph.as_default():
            self._session = tf.compat.v1.Session(graph=graph, config=config)
            meta_graph = tf.compat.v1.saved_model.load(self._session, _TAGS, str(directory))
        # As clients see them, with the initialization signature, which has no inputs.
        self.metadata_signature_defs = dict(meta_graph.signature_def)
        self.signature_defs = {
            name: signature
            for name, signature in meta_graph.signature_def.items()
            if signature.inputs
        }
        self._callables = {
            name: _Callable(self._session, signature)
            for name, signature in self.signature_defs.items()
        }

    def row_wise_signatures(self) -> frozenset[str]:
        """Returns the signatures with one input that return a row for each of its rows."""
        return frozenset(name for name, target in self._callables.items() if target.is_row_wise)

    def definition(self, signature: str) -> Any:
        """Returns a signature's `SignatureDef`; raises RequestFailed if there is none."""
        definition = self.signature_defs.get(signature)
        if definition is None:
            # TF Serving's message, which clients may match.
            message = f'Serving signature key "{signature}" not found.'
            raise RequestFailed(grpc.StatusCode.FAILED_PRECONDITION, message)
        return definition

    def check_types(self, signature: str, types: Mapping[str, int]) -> None:
        """Checks the names and types of a request's inputs.

        Args:
            signature: Name of the signature.
            types: DataTypes of the inputs by name.

        Raises:
            RequestFailed: If there is no such signature, or it takes other inputs.
        """
        self.definition(signature)
        expected = self._callables[signature].types
        if types == expected:  # Almost always: spares the common case the rest.
            return
        if set(types) != set(expected):
            extra, missing = (
                ",".join(sorted(x))
                for x in (set(types) - set(expected), set(expected) - set(types))
            )
            raise failures.invalid(
                f"input size does not match signature: {len(types)}!={len(expected)}. "
                f"Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
            )
        for name, number in types.items():
            if number != expected[name]:
                raise failures.invalid(
                    f"input {name} must be {tf.as_dtype(expected[name]).name}. "
                    f"Received: {_type_name(number)}"
                )

    def check(self, signature: str, inputs: dict[str, np.ndarray]) -> None:
        """Checks a request's inputs; raises RequestFailed if the signature does not take them."""
        # A session would cast other types silently.
        self.check_types(signature, {name: _type_of(value) for name, value in inputs.items()})
        for name, shape in self._callables[signature].inputs.items():
            _check_shape(name, inputs[name].shape, shape)

    def output_names(self, signature: str) -> list[str]:
        """Returns the names of a signature's outputs, sorted."""
        return list(self._callables[signature].outputs)

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a signature with inputs that have passed `check`.

        Raises:
            RequestFailed: If an operation fails, for instance on an undecodable image.
        """
        target = self._callables[signature]
        try:
            values = target.run(*(inputs[name] for name in target.inputs))
        except tf.errors.OpError as error:
            raise failures.operation_failed(error.error_code, error.message) from error
        return dict(zip(target.outputs, values, strict=True))

    def close(self) -> None:
        """Frees the session."""
        self._session.close()


def _type_of(value: np.ndarray) -> int:
    return (tf.string if value.dtype == object else tf.as_dtype(value.dtype)).as_datatype_enum


def _type_name(number: int) -> str:
    try:
        return tf.as_dtype(number).name
    except TypeError:
        return f"DataType {number}"


def _shape(info) -> _Shape:
    shape = tf.TensorShape(info.tensor_shape)
    return None if shape.rank is None else tuple(shape.as_list())


def _check_shape(name: str, shape: tuple[int, ...], expected: _Shape) -> None:
    if expected is None:
        return
    if len(shape) != len(expected) or any(
        size not in (None, other) for size, other in zip(expected, shape, strict=True)
    ):
        raise failures.invalid(
            f"input {name} must have shape {tf.TensorShape(expected)}. Received: {shape}"
        )
