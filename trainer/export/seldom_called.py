"""Keeps TensorFlow's graph optimizer from functions of a SavedModel that are seldom called.

A loader optimizes the graph of each signature at its first call, with all functions it reaches:
also those that read EXIF and turn pictures, which most pictures never call. They are two fifths of
the operations and took 55 % of the time of the first calls (9.0 s of the processor for all six
signatures, 4.1 s without; tiny model, 2 cores of an Intel Xeon, 2026-11-30). Functions of tf.data
are left to tf.data's own optimizer, which a loader does not have, so that mark takes them out.
"""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from tensorflow.core.framework import function_pb2, node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import fingerprinting_utils

_FILE = "saved_model.pb"
_APART, _MARK = "_noinline", "_tf_data_function"


def mark(directory: str | Path) -> None:
    """Marks the functions that are called only by those that are not inlined, and these.

    Args:
        directory: A SavedModel, which is changed.
    """
    path = Path(directory) / _FILE
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in model.meta_graphs:
        functions = {item.signature.name: item for item in graph.graph_def.library.function}
        for name in _apart(functions):
            functions[name].attr[_MARK].b = True
    path.write_bytes(model.SerializeToString(deterministic=True))
    fingerprinting_utils.write_fingerprint(str(directory))


def _apart(functions: Mapping[str, function_pb2.FunctionDef]) -> Set[str]:
    """Returns the names of the functions that nothing reaches but through one not inlined."""
    calls = {name: _calls(item.node_def) & functions.keys() for name, item in functions.items()}
    borders = {name for name, item in functions.items() if item.attr[_APART].b}
    below = _reached(borders, calls, but=frozenset())
    others = functions.keys() - below
    return below - _reached(others, calls, but=borders)


def _reached(starts: Set[str], calls: Mapping[str, Set[str]], *, but: Set[str]) -> Set[str]:
    reached: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += calls[name] - but
    return reached


def _calls(nodes: Iterable[node_def_pb2.NodeDef]) -> set[str]:
    """Returns the names of the functions that operations call; other operations' names too."""
    names = set()
    for node in nodes:
        names.add(node.op)
        for value in node.attr.values():
            names.add(value.func.name)
            names.update(item.name for item in value.list.func)
    return names
