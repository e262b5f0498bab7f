"""Parts that XLA compiles give what they give otherwise, and their gradients."""

import functools

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from sigline.trainer.models import transformer, xla_regions

QUERIES, TOKENS = 3, 5


def _gelu(x):
    return x * 0.5 * (1.0 + scipy.special.erf(x / np.sqrt(2.0)))


def _gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def _quick_gelu(x):
    return x * scipy.special.expit(1.702 * x)


def _slope(apply, x, step=1e-5):
    return (apply(x + step) - apply(x - step)) / (2.0 * step)


def _compiled_parts(function):
    """Returns how many functions within a traced one XLA must compile, gradients too."""
    graph = function.get_concrete_function().graph.as_graph_def()
    return sum(item.attr["_XlaMustCompile"].b for item in graph.library.function)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("gelu", _gelu), ("gelu_tanh", _gelu_tanh), ("quick_gelu", _quick_gelu)],
)
@pytest.mark.parametrize("in_graph", [False, True])
def test_fused_activations_equal_float64(name, reference, in_graph):
    values = np.linspace(-6.0, 6.0, 101)
    x = tf.constant(values, tf.float32)

    def compute():
        with xla_regions.fusing(True), tf.GradientTape() as tape:
            tape.watch(x)
            y = transformer._ACTIVATIONS[name](x)
        return y, tape.gradient(y, x)

    y, slope = (tf.function(compute, autograph=False) if in_graph else compute)()
    np.testing.assert_allclose(y, reference(values), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, _slope(reference, values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_attention_equals_the_plain_one(recompute, masked, dtype):
    rng = np.random.default_rng(0)
    sizes = [(2, QUERIES, 2, 4), (2, TOKENS, 2, 4), (2, TOKENS, 2, 4)]
    inputs = [tf.constant(rng.standard_normal(size), dtype) for size in sizes]
    mask = tf.linalg.band_part(tf.ones((QUERIES, TOKENS), tf.bool), -1, 0)

    def compute(fuses):
        attend = functools.partial(transformer._attend, mask=mask if masked else None)
        attend = tf.recompute_grad(attend) if recompute else attend
        with xla_regions.fusing(fuses), tf.GradientTape() as tape:
            tape.watch(inputs)
            y = attend(*inputs)
            found = y, tape.gradient(y, inputs, tf.cast(tf.sin(tf.cast(y, tf.float32)), dtype))
        return found

    fused = tf.function(functools.partial(compute, True), autograph=False)
    plain = tf.function(functools.partial(compute, False), autograph=False)
    assert _compiled_parts(fused) > 0
    assert _compiled_parts(plain) == 0
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    for ours, theirs in zip(*map(tf.nest.flatten, (fused(), plain())), strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = tf.cast(ours, tf.float32), tf.cast(theirs, tf.float32)
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_recomputing_keeps_nothing_but_the_arguments():
    x = tf.random.stateless_normal((64,), (0, 0))

    def kept(apply):
        """Returns how many vectors the gradient reads from the forward pass."""

        def compute(x):
            with xla_regions.fusing(True), tf.GradientTape() as tape:
                tape.watch(x)
                y = apply(x)
            return tape.gradient(y, x)

        graph = tf.function(compute, autograph=False).get_concrete_function(x).graph
        calls = [op for op in graph.get_operations() if op.type.endswith("PartitionedCall")]
        outputs = {item.ref() for op in calls[:1] for item in op.outputs}
        return len(outputs & {item.ref() for op in calls[1:] for item in op.inputs})

    chain = lambda x: tf.sin(x) * tf.exp(tf.cos(x))  # noqa: E731
    assert kept(xla_regions.fusible(chain)) > 0
    assert kept(xla_regions.fusible(chain, recompute=True)) == 0


def test_fusing_ends_with_its_block():
    seen = []
    apply = xla_regions.fusible(lambda x: seen.append(tf.executing_eagerly()) or x + 1.0)

    def fail():
        with xla_regions.fusing(True):
            apply(tf.zeros(()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    apply(tf.zeros(()))
    # Compiled it runs in a graph.
    assert seen == [False, True]
