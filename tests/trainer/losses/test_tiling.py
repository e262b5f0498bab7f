import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer.losses import tiling


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 10, 11])
def test_every_row_is_visited_once_and_in_order(chunk_size):
    rows = {"number": tf.range(10), "pair": tf.reshape(tf.range(20), (10, 2))}

    def visit(chunk, start, state):
        tf.debugging.assert_equal(chunk["number"][0], start)
        return chunk["pair"][:, 1] + chunk["number"], state + tf.reduce_sum(chunk["number"])

    found, total = tiling.over_chunks(
        visit, rows, tf.constant(0), row_specs=tf.TensorSpec((), tf.int32), chunk_size=chunk_size
    )
    np.testing.assert_array_equal(found, 3 * np.arange(10) + 1)
    assert int(total) == 45


def test_default_blocks_have_bounded_size():
    assert tiling.default_chunk_size(1024) == 4096
    assert tiling.default_chunk_size(5120) == 768
    assert tiling.default_chunk_size(10**6) == 512
    assert tiling.default_chunk_size(None) == 512


@pytest.mark.parametrize("shape", [(1,), (63,), (64,), (65,), (4097, 2), (100_000,)])
@pytest.mark.parametrize("value", [4.54e-5, 1.0])
def test_sums_under_xla_keep_their_digits(shape, value):
    # One accumulator for 100,000 equal terms would lose the third digit.
    total = tiling.sum_all(tf.fill(shape, value))
    assert float(total) == pytest.approx(np.float32(value) * np.prod(shape), rel=1e-6)


def test_sum_of_nothing_is_zero():
    assert float(tiling.sum_all(tf.zeros((0,)))) == 0.0
