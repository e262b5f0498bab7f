"""Keeps TensorFlow, TFX and Beam from writing walls of warnings that a user cannot act on."""

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator


def silence() -> None:
    """Sets what the environment and Python's logging can; call it before importing TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", module="kfp|tfx|google|tensorflow|keras|apache_beam")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("apache_beam", "tensorflow", "tensorflow_data_validation", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
    """Hides what native code writes to standard error, such as lines printed while libraries load.

    No environment variable stops those. An exception passes through as usual.
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


def import_tensorflow() -> None:
    """Imports TensorFlow quietly."""
    silence()
    with hidden_stderr():
        import tensorflow as tf
    tf.get_logger().setLevel("ERROR")
    _quiet_absl()


def import_tfx() -> None:
    """Imports TFX, TFDV and TensorFlow quietly and in the one order that works.

    `tfx` comes first: TFDV cannot be imported without the stand-ins that it installs.
    """
    silence()
    with hidden_stderr():
        importlib.import_module("tfx.components")
        importlib.import_module("tensorflow_data_validation")
    import_tensorflow()


def _quiet_absl() -> None:
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    absl_logging.set_stderrthreshold("error")
