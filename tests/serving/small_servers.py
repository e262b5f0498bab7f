"""Models that tell their version, and servers of folders."""

import contextlib
import os
from pathlib import Path


def write_version(base: Path, number: int, *, fails_on: str = "") -> Path:
    """Publishes a model that answers numbers, written as texts, by its version and the number."""
    import tensorflow as tf

    from sigline.components.publish import publishing

    class Model(tf.Module):
        def __init__(self):
            super().__init__()
            self.version = tf.Variable(float(number))

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="text")])
        def embed_text(self, text):
            checked = tf.debugging.Assert(
                tf.reduce_all(text != fails_on) if fails_on else tf.constant(True),
                ["this text fails"],
            )
            with tf.control_dependencies([checked] if checked is not None else []):
                values = tf.strings.to_number(text)
            versions = tf.zeros_like(values) + self.version
            return {"embedding": tf.stack([versions, values], axis=1)}

        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="numbers")])
        def double(self, numbers):
            return {"doubled": 2.0 * numbers, "label_bytes": tf.as_string(numbers[:, 0])}

    model, scratch = Model(), base.parent / f"{base.name}-{number}"
    signatures = {
        "embed_text": model.embed_text,
        "serving_default": model.embed_text,
        "double": model.double,
    }
    tf.saved_model.save(model, str(scratch), signatures=signatures)
    published = publishing.publish(scratch, base)
    if published.version != number:
        os.rename(published.path, base / str(number))
    return base / str(number)


@contextlib.contextmanager
def running(base: Path, **settings):
    """Yields a server of a folder on free ports."""
    from sigline.serving.server import server

    config = server.ServerConfig(
        **({"models": server.one_model(base), "port": 0, "rest_port": 0} | settings)
    )
    found = server.ModelServer(config)
    found.start()
    try:
        yield found
    finally:
        found.stop()
