"""Runs a SavedModel through the C++ loader that TF Serving uses, without TF Serving.

TensorFlow's wheel exports the C API, whose `TF_LoadSessionFromSavedModel` is that loader. Loading
alone proves little: missing variables and refused XLA compilation show only when a signature runs,
so every signature is run. XLA is switched off first, as in the stock server. That affects the whole
process, so this module must run as a process of its own:
`python -m sigline.serving.checks.loader_check DIR`.
"""

import ctypes
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sigline.schemas import retrieval, signatures
from sigline.serving.checks import oriented_images

_DISABLE_XLA = "_ZN10tensorflow21DisableXlaCompilationEv"
_STRING_TENSOR_BYTES = 24  # sizeof(TF_TString)
# Larger than 0: the rows of a batch may be summed in different orders.
_ORIENTATION_TOLERANCE = 1e-5
_FILE_OPS = {"ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "EagerPyFunc", "PyFuncStateless"}


class LoaderError(RuntimeError):
    """The C++ loader or a run of a signature reported an error."""


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    ]


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class LoadedModel:
    """A SavedModel in a session of the C API."""

    def __init__(self, directory: str | Path):
        """Loads the model.

        Raises:
            LoaderError: With the loader's own message.
        """
        # Imported first: the operations of TF-Text register with the library loaded below.
        import tensorflow as tf
        import tensorflow_text  # noqa: F401
        from tensorflow.core.protobuf import meta_graph_pb2

        library = Path(tf.__file__).parent / "libtensorflow_cc.so.2"
        self._api = _typed(ctypes.CDLL(str(library)))
        getattr(self._api, _DISABLE_XLA)()
        self._status = ctypes.c_void_p(self._api.TF_NewStatus())
        self._graph = ctypes.c_void_p(self._api.TF_NewGraph())
        buffer = ctypes.c_void_p(self._api.TF_NewBuffer())
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            self._api.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(self._api.TF_NewSessionOptions()),
                None,
                str(directory).encode(),
                tags,
                1,
                self._graph,
                buffer,
                self._status,
            )
        )
        self._check("load")
        content = ctypes.cast(buffer, ctypes.POINTER(_Buffer)).contents
        meta_graph = meta_graph_pb2.MetaGraphDef.FromString(
            ctypes.string_at(content.data, content.length)
        )
        self.signatures = {
            name: signature
            for name, signature in meta_graph.signature_def.items()
            if signature.inputs
        }
        graph = meta_graph.graph_def
        nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
        self.operations = {node.op for node in nodes}

    def run(self, signature_name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a signature; string inputs are object arrays of bytes.

        Raises:
            LoaderError: With the runtime's own message.
        """
        signature = self.signatures[signature_name]
        feeds = [(signature.inputs[name].name, value) for name, value in sorted(inputs.items())]
        fetches = sorted((name, info.name) for name, info in signature.outputs.items())
        api = self._api
        values = (ctypes.c_void_p * len(feeds))(*(self._tensor(value) for _, value in feeds))
        results = (ctypes.c_void_p * len(fetches))()
        api.TF_SessionRun(
            self._session,
            None,
            (_Output * len(feeds))(*(self._output(name) for name, _ in feeds)),
            values,
            len(feeds),
            (_Output * len(fetches))(*(self._output(name) for _, name in fetches)),
            results,
            len(fetches),
            None,
            0,
            None,
            self._status,
        )
        for value in values:
            api.TF_DeleteTensor(ctypes.c_void_p(value))
        self._check(f"run {signature_name}")
        return {
            name: self._array(ctypes.c_void_p(result))
            for (name, _), result in zip(fetches, results, strict=True)
        }

    def close(self) -> None:
        """Frees the session."""
        self._api.TF_CloseSession(self._session, self._status)
        self._api.TF_DeleteSession(self._session, self._status)

    def _check(self, action: str) -> None:
        code = self._api.TF_GetCode(self._status)
        if code:
            message = self._api.TF_Message(self._status).decode(errors="replace")
            raise LoaderError(f"{action}: code {code}: {message}")

    def _output(self, tensor_name: str) -> _Output:
        name, _, index = tensor_name.partition(":")
        operation = self._api.TF_GraphOperationByName(self._graph, name.encode())
        return _Output(operation, int(index or 0))

    def _tensor(self, value: np.ndarray) -> int:
        dims = (ctypes.c_int64 * value.ndim)(*value.shape)
        if value.dtype == np.float32:
            tensor = self._api.TF_AllocateTensor(1, dims, value.ndim, value.nbytes)  # TF_FLOAT.
            data = self._api.TF_TensorData(ctypes.c_void_p(tensor))
            ctypes.memmove(data, np.ascontiguousarray(value).ctypes.data, value.nbytes)
            return tensor
        if value.dtype != object:
            raise TypeError(
                f"Inputs must be strings (object) or float32. Received: dtype={value.dtype}"
            )
        size = _STRING_TENSOR_BYTES * value.size
        tensor = self._api.TF_AllocateTensor(7, dims, value.ndim, size)  # 7 is TF_STRING.
        data = self._api.TF_TensorData(ctypes.c_void_p(tensor))
        for i, item in enumerate(value.ravel()):
            slot = ctypes.c_void_p(data + i * _STRING_TENSOR_BYTES)
            self._api.TF_StringInit(slot)
            self._api.TF_StringCopy(slot, item, len(item))
        return tensor

    def _array(self, tensor: ctypes.c_void_p) -> np.ndarray:
        api = self._api
        rank = api.TF_NumDims(tensor)
        shape = tuple(api.TF_Dim(tensor, axis) for axis in range(rank))
        data = api.TF_TensorData(tensor)
        kind = api.TF_TensorType(tensor)
        if kind == 7:
            count = int(np.prod(shape))
            slots = [ctypes.c_void_p(data + i * _STRING_TENSOR_BYTES) for i in range(count)]
            items = [
                ctypes.string_at(api.TF_StringGetDataPointer(s), api.TF_StringGetSize(s))
                for s in slots
            ]
            array = np.array(items, dtype=object).reshape(shape)
        else:
            dtype = {1: np.float32, 3: np.int32, 9: np.int64, 10: np.bool_}[kind]
            raw = ctypes.string_at(data, api.TF_TensorByteSize(tensor)) if np.prod(shape) else b""
            array = np.frombuffer(raw, dtype).reshape(shape).copy()
        api.TF_DeleteTensor(tensor)
        return array


def _typed(api: ctypes.CDLL) -> Any:
    """Declares result types: ctypes assumes a C int, which would cut pointers to 32 bits."""
    pointers = (
        "TF_NewStatus",
        "TF_NewSessionOptions",
        "TF_NewGraph",
        "TF_NewBuffer",
        "TF_LoadSessionFromSavedModel",
        "TF_GraphOperationByName",
        "TF_AllocateTensor",
        "TF_TensorData",
        "TF_StringGetDataPointer",
    )
    for name in pointers:
        getattr(api, name).restype = ctypes.c_void_p
    for name in ("TF_TensorByteSize", "TF_StringGetSize"):
        getattr(api, name).restype = ctypes.c_size_t
    api.TF_Message.restype = ctypes.c_char_p
    api.TF_Dim.restype = ctypes.c_int64
    api.TF_AllocateTensor.argtypes = (
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_int,
        ctypes.c_size_t,
    )
    api.TF_StringCopy.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
    return api


def example_inputs(
    signature: Any, count: int = 2, *, model_digest: str = ""
) -> dict[str, np.ndarray]:
    """Returns inputs for a signature of the model contract: plain images, texts and vectors.

    Args:
        signature: Its `SignatureDef`.
        count: Rows of each input.
        model_digest: Digest of the model that embedded an index; empty for other models.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 30, 30)).save(buffer, "PNG")
    content = {
        signatures.IMAGE_BYTES: buffer.getvalue(),
        signatures.TEXT: b"a red picture",
        retrieval.MODEL_DIGEST: model_digest.encode(),
    }
    inputs = {}
    for name, info in signature.inputs.items():
        if name == retrieval.EMBEDDING:
            inputs[name] = np.ones((count, info.tensor_shape.dim[1].size), np.float32)
        else:
            inputs[name] = np.array([content[name]] * count, dtype=object)
    return inputs


def check(directory: str | Path) -> dict[str, list[str]]:
    """Loads a model and runs every signature; returns the names of the inputs by signature.

    Raises:
        LoaderError: If the model does not load, a signature fails, an output is not finite, the
            answer for an image depends on its EXIF orientation, or the graph has operations that
            access files or Python.
    """
    model = LoadedModel(directory)
    forbidden = sorted(model.operations & _FILE_OPS)
    if forbidden:
        raise LoaderError(
            "the graph must have no operations that access files or Python, which a server does "
            f"not allow. Received: {', '.join(forbidden)}"
        )
    about = Path(directory) / signatures.ASSETS_DIR / retrieval.INDEX_FILE
    digest = json.loads(about.read_text())[retrieval.MODEL_DIGEST] if about.is_file() else ""
    input_names = {}
    for name, signature in sorted(model.signatures.items()):
        outputs = model.run(name, example_inputs(signature, model_digest=digest))
        for output, value in outputs.items():
            if value.dtype == np.float32 and not np.isfinite(value).all():
                raise LoaderError(f"run {name}: output {output} is not finite")
        input_names[name] = sorted(signature.inputs)
    if signatures.EMBED_IMAGE in model.signatures:
        _check_orientation(model)
    model.close()
    return input_names


def _check_orientation(model: Any) -> None:
    """Checks that images are turned as their EXIF orientation says.

    Raises:
        LoaderError: If they are not.
    """
    images = [encoded for _, _, encoded in oriented_images.oriented_images()]
    inputs = {signatures.IMAGE_BYTES: np.array(images, dtype=object)}
    answer = model.run(signatures.EMBED_IMAGE, inputs)[signatures.EMBEDDING]
    difference, image = oriented_images.max_difference(answer)
    if difference > _ORIENTATION_TOLERANCE:
        raise LoaderError(
            f"run {signatures.EMBED_IMAGE}: {image} gets another embedding than the upright "
            f"picture: off by {difference:.2g}, of at most {_ORIENTATION_TOLERANCE:g}"
        )


if __name__ == "__main__":
    try:
        print(json.dumps(check(sys.argv[1])))
    except LoaderError as error:
        sys.exit(str(error))
