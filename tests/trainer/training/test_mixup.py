"""Golden values of mixup: what is mixed, and how much of it."""

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer.losses import semantic_softmax
from sigline.trainer.training import mixup

# Quantiles of max(a, 1 - a) for a of Beta(p, p), and its mean, which is one half and
# p^2p / ((2p)^(2p + 1) B(p, p)) times two: the mean deviation of Beta.
_QUANTILES = [0.1, 0.25, 0.5, 0.75, 0.9]
_SHARES = {
    0.2: ([0.652713, 0.836579, 0.976185, 0.999244, 0.999992], 0.898810),
    0.5: ([0.578217, 0.691342, 0.853553, 0.961940, 0.993844], 0.818310),
    0.8: ([0.557431, 0.642903, 0.780705, 0.906341, 0.969986], 0.771823),
}


def test_labels_are_mixed_as_pixels_are():
    pixels = mixup.mixed(tf.constant([10, 20, 40], tf.uint8), 0.7)
    np.testing.assert_allclose(pixels, [19.0, 17.0, 34.0], rtol=1e-6)
    labels = mixup.mixed(tf.eye(3), 0.7)
    np.testing.assert_allclose(labels, [[0.7, 0, 0.3], [0.3, 0.7, 0], [0, 0.3, 0.7]], rtol=1e-6)


def test_targets_of_a_tree_are_mixed_level_by_level():
    levels = semantic_softmax.levels_of((-1, -1, 0, 0, 1, 2, 2))
    targets = semantic_softmax.semantic_targets(tf.constant([[5], [1]]), levels=levels)
    expected = [[0.7, 0.3, 0.7, 0, 0, 0.7, 0], [0.3, 0.7, 0.3, 0, 0, 0.3, 0]]
    np.testing.assert_allclose(mixup.mixed(targets, 0.7), expected, rtol=1e-6)


@pytest.mark.parametrize("concentration", _SHARES)
def test_shares_have_the_quantiles_and_the_mean_of_beta(concentration):
    quantiles, mean = _SHARES[concentration]
    middles = (np.arange(200) + 0.5) / 200
    uniform = np.concatenate([_QUANTILES, middles]).astype(np.float32)
    draw = tf.function(
        lambda u: tf.map_fn(lambda x: mixup._upper_beta(concentration, x), u),
        jit_compile=True,
        autograph=False,
    )
    shares = draw(tf.constant(uniform)).numpy()
    np.testing.assert_allclose(shares[: len(quantiles)], quantiles, atol=3e-6)
    assert shares[len(quantiles) :].mean() == pytest.approx(mean, abs=2e-5)
