"""Imports TensorFlow, TFX and Beam without their many warnings, which users cannot act on."""

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator

from sigline.schemas import progress

# Optional packages that the stack imports if they are installed, for notebooks, scikit-learn's
# estimators and MongoDB. Together they take a fifth of the import time.
_OPTIONAL = ("IPython", "ipywidgets", "pymongo", "sklearn")
# Packages whose `__init__` imports all submodules, of which sigline needs few.
_TFMA = "tensorflow_model_analysis"
_LARGE = ("tfx.components", _TFMA)


def silence() -> None:
    """Sets environment variables and log levels; must be called before importing TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", module="kfp|tfx|google|tensorflow|keras|apache_beam")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("tensorflow", "tensorflow_data_validation", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Beam logs the traceback of each error that it raises.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
    """Discards output to standard error, such as that of native code while libraries load.

    No environment variable stops that output. Exceptions are raised as usual.
    """
    saved = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)


@contextlib.contextmanager
def absent(*names: str) -> Iterator[None]:
    """Makes imports of optional packages fail, except for those that are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        # Python raises ImportError for a module whose entry is None.
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


class _OnDemand(types.ModuleType):
    """A package whose `__init__` runs only when an attribute is used that is not a submodule.

    Submodules can be imported without it. `importlib.util.LazyLoader` would run `__init__` first.
    """

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        path = f"{self.__name__}.{name}"
        if importlib.util.find_spec(path) is not None:
            return importlib.import_module(path)
        self.__class__ = types.ModuleType
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        with hidden_stderr():
            spec.loader.exec_module(self)
        if self.__name__ == _TFMA:
            _name_messages(self)
        return getattr(self, name)


def _name_messages(tfma: types.ModuleType) -> None:
    """Adds TFMA's protobuf messages to its namespace, which otherwise `tfx.components` does."""
    messages = importlib.import_module(f"{_TFMA}.proto.config_pb2")
    for name in messages.DESCRIPTOR.message_types_by_name:
        if not hasattr(tfma, name):
            setattr(tfma, name, getattr(messages, name))


def import_on_demand(name: str) -> None:
    """Imports a package without running its `__init__`; see `_OnDemand`."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = _OnDemand(name)
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    module.__package__, module.__path__ = name, list(spec.submodule_search_locations or ())
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def import_tensorflow() -> None:
    """Imports TensorFlow quietly."""
    silence()
    with progress.part("import TensorFlow"), hidden_stderr(), absent(*_OPTIONAL):
        import tensorflow as tf
    tf.get_logger().setLevel("ERROR")
    _quiet_absl()


def import_tfx() -> None:
    """Imports TFX, TFDV and TensorFlow quietly and in the one order that works.

    `tfx` comes first, since it installs stand-ins without which TFDV cannot be imported. Components
    of TFX are imported on demand: Evaluator with TFMA, Transform, Tuner and InfraValidator take a
    third of the time, and sigline's pipeline uses none of them by default.
    """
    silence()
    with progress.part("import TFX"), hidden_stderr(), absent(*_OPTIONAL):
        importlib.import_module("tfx")
        for name in _LARGE:
            import_on_demand(name)
        importlib.import_module("tensorflow_data_validation")
    import_tensorflow()


def _quiet_absl() -> None:
    from absl import logging as absl_logging

    # TFX logs that a node failed, and also raises the error, so the log is redundant.
    absl_logging.set_verbosity(absl_logging.FATAL)
    absl_logging.set_stderrthreshold("fatal")
