"""What processes that serve a model import, for a server of processes to import once."""

import sigline.quiet

sigline.quiet.import_tensorflow()

import tensorflow_text  # noqa: F401

from sigline.serving.server import server  # noqa: F401
