import numpy as np
import pytest
from scipy import ndimage

from sigline.trainer.models import positions


def test_sincos_has_the_references_values():
    # big_vision's posemb_sincos_2d of a 2 x 3 grid at width 8, patch (0, 1), measured there.
    expected = [0.841471, 1e-4, 0.540302, 1, 0, 0, 1, 1]
    np.testing.assert_allclose(positions.sincos_2d(3, 8)[0, 1], expected, atol=1e-6)


def test_sincos_counts_columns_first():
    table = positions.sincos_2d(2, 8)[0]
    # Patch 2 is the first of the second row: its column is 0, its row 1.
    np.testing.assert_allclose(table[2, :4], table[0, :4])
    np.testing.assert_allclose(table[2, 4:], table[1, :4])


@pytest.mark.parametrize("width", [4, 10])
def test_sincos_refuses_widths_that_it_cannot_share_out(width):
    with pytest.raises(ValueError, match=f"multiple of 4.*width={width}"):
        positions.sincos_2d(2, width)


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (3, 3), (14, 24)])
def test_resample_equals_scipy_zoom(old, new):
    table = np.random.default_rng(0).standard_normal((1, old * old, 5)).astype(np.float32)
    square = table.reshape(old, old, 5)
    expected = ndimage.zoom(square, (new / old, new / old, 1), order=1)
    found = positions.resample(table, new)
    np.testing.assert_allclose(found, expected.reshape(1, new * new, 5), atol=1e-5)
    assert found.dtype == np.float32


def test_resample_refuses_what_is_not_square():
    with pytest.raises(ValueError, match=r"square.*\(1, 6, 2\)"):
        positions.resample(np.zeros((1, 6, 2)), 3)
