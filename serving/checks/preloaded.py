"""Imports of processes that serve a model, so that a fork server imports them only once."""

import sigline.quiet

sigline.quiet.import_tensorflow()

import tensorflow_text  # noqa: F401

from sigline.serving.server import server  # noqa: F401
