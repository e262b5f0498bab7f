"""The mark that keeps the graph optimizer from functions that most pictures never call."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from sigline.trainer.export import seldom_called

_TEXT = tf.TensorSpec([], tf.float32)


@tf.function(autograph=False, experimental_attributes={"_noinline": True}, input_signature=[_TEXT])
def _rare(x):
    halved = tf.while_loop(lambda x: x > 1.0, lambda x: (x / 2.0,), [x])[0]
    return tf.cond(halved > 0.7, lambda: halved, lambda: _shared(halved))


@tf.function(autograph=False, input_signature=[_TEXT])
def _shared(x):
    return x + 10.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    module = tf.Module()

    @tf.function(autograph=False, input_signature=[_TEXT])
    def answer(x):
        return {"y": tf.cond(x > 100.0, lambda: _rare(x), lambda: _shared(x))}

    module.answer = answer
    path = tmp_path_factory.mktemp("model")
    tf.saved_model.save(module, str(path), signatures={"answer": answer})
    seldom_called.mark(path)
    return path


def _functions(folder):
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return model.meta_graphs[0].graph_def.library.function


def test_functions_below_the_border_are_marked_and_no_others(folder):
    marked = {x.signature.name for x in _functions(folder) if x.attr["_tf_data_function"].b}
    assert any("_rare" in name for name in marked)
    # The loop's condition and body, and the branches of what is chosen behind it.
    assert len([name for name in marked if "while" in name]) == 2
    assert len([name for name in marked if name.startswith("cond_")]) == 2
    others = {x.signature.name for x in _functions(folder)} - marked
    assert any("_shared" in name for name in others)
    assert any("answer" in name for name in others)


@pytest.mark.parametrize("x", [3.0, 1e3, 1e6, 640.0])
def test_marked_functions_answer_as_before(folder, x):
    halved = np.float32(x)
    while halved > 1:
        halved /= 2
    expected = x + 10 if x <= 100 else (halved if halved > 0.7 else halved + 10)
    signature = tf.saved_model.load(str(folder)).signatures["answer"]
    np.testing.assert_allclose(signature(x=tf.constant(x))["y"], expected, rtol=1e-6)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        definition = loaded.signature_def["answer"]
        feeds = {definition.inputs["x"].name: x}
        np.testing.assert_allclose(
            session.run(definition.outputs["y"].name, feeds), expected, rtol=1e-6
        )


def test_fingerprint_is_that_of_the_file(folder):
    fingerprint = tf.saved_model.experimental.read_fingerprint(str(folder))
    before = fingerprint.saved_model_checksum
    seldom_called.mark(folder)
    again = tf.saved_model.experimental.read_fingerprint(str(folder))
    assert again.saved_model_checksum == before
