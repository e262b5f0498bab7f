"""FlexiViT's kernels and positions at other sizes, against values computed in float64."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.models import flexi, two_tower

SIDES = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30, 32, 48)


@pytest.mark.parametrize(
    ("old", "new", "rows"),
    [
        (2, 4, [[0.65, -0.15], [0.45, 0.05], [0.05, 0.45], [-0.15, 0.65]]),
        (4, 2, [[1, 1, 0, 0], [0, 0, 1, 1]]),
        (
            3,
            5,
            [
                [0.760504201681, -0.142857142857, 0.025210084034],
                [0.399159663866, 0.238095238095, -0.042016806723],
                [-0.142857142857, 0.809523809524, -0.142857142857],
            ],
        ),
        (
            8,
            16,
            [
                [
                    *(0.666666635693, -0.222222088001, 0.074073657645, -0.024690104147),
                    *(0.008226689513, -0.002732194230, 0.000880624586, -0.000203221058),
                ],
                [
                    *(0.444444454769, 0.074074029334, -0.024691219215, 0.008230034716),
                    *(-0.002742229838, 0.000910731410, -0.000293541529, 0.000067740353),
                ],
            ],
        ),
    ],
)
def test_pseudo_inverse_has_the_reference_values(old, new, rows):
    matrix = flexi.pseudo_inverse(old, new)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix[: len(rows)], rows, atol=1e-11)


def test_pseudo_inverse_in_two_dimensions_has_the_reference_values():
    larger = np.kron(*[flexi.pseudo_inverse(8, 16)] * 2)
    assert larger[0, 0] == pytest.approx(0.444444403146, abs=1e-11)
    assert larger[0, 1] == pytest.approx(-0.148148051784, abs=1e-11)
    assert larger.sum() == pytest.approx(64.0, abs=1e-9)
    assert np.linalg.norm(larger) == pytest.approx(7.250000371689, abs=1e-10)
    smaller = np.kron(*[flexi.pseudo_inverse(16, 8)] * 2)
    assert smaller.sum() == pytest.approx(256.0, abs=1e-9)
    assert np.linalg.norm(smaller) == pytest.approx(16.0, abs=1e-10)


def test_products_with_enlarged_patches_stay_what_they_are():
    rng = np.random.default_rng(0)
    for place, old in enumerate(SIDES):
        for new in SIDES[place:]:
            patch, kernel = rng.standard_normal((2, old, old))
            resize, inverse = flexi.bilinear(old, new), flexi.pseudo_inverse(old, new)
            product = np.sum((resize @ patch @ resize.T) * (inverse @ kernel @ inverse.T))
            assert product == pytest.approx(np.sum(patch * kernel), rel=1e-12, abs=1e-12 * old**2)


@pytest.mark.parametrize(("old", "new"), [(5, 12), (16, 8), (7, 5), (4, 4)])
def test_matrices_are_those_of_tensorflow(old, new):
    images = np.eye(old, dtype=np.float32).reshape(1, old, old, 1)

    def resized(**options):
        return tf.image.resize(images, (new, new), **options).numpy()[0, :, :, 0]

    plain, smooth = flexi.bilinear(old, new), flexi.triangle(old, new)
    np.testing.assert_allclose(plain @ plain.T, resized(), atol=2e-6)
    np.testing.assert_allclose(smooth @ smooth.T, resized(antialias=True), atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new", "row", "values"),
    [
        (7, 5, 0, [2 / 3, 1 / 3]),
        (7, 5, 1, [0, 4 / 9, 5 / 9]),
        (7, 10, 1, [0.45, 0.55]),
        (7, 15, 1, [0.8, 0.2]),
        (7, 15, 2, [1 / 3, 2 / 3]),
    ],
)
def test_positions_have_the_reference_weights(old, new, row, values):
    expected = [*values, *[0] * (old - len(values))]
    np.testing.assert_allclose(flexi.triangle(old, new)[row], expected, atol=1e-12)


def test_kernels_have_the_reference_values():
    def resized(kernel, new):
        kernel = np.asarray(kernel, np.float32)
        old = len(kernel)
        # The last of three channels, and the first of two outputs.
        values = np.zeros((old, old, 3, 2), np.float32)
        values[:, :, 2, 0] = kernel
        found = flexi.resize_kernel(tf.constant(values.reshape(-1, 2)), old, new).numpy()
        found = found.reshape(new, new, 3, 2)
        assert not found[:, :, :2].any()
        assert not found[..., 1].any()
        return found[:, :, 2, 0]

    expected = [
        [-0.225, -0.125, 0.075, 0.175],
        [-0.025, 0.075, 0.275, 0.375],
        [0.375, 0.475, 0.675, 0.775],
        [0.575, 0.675, 0.875, 0.975],
    ]
    np.testing.assert_allclose(resized([[0, 1], [2, 3]], 4), expected, atol=1e-6)
    blocks = resized(np.arange(16).reshape(4, 4), 2)
    np.testing.assert_allclose(blocks, [[10, 18], [42, 50]], rtol=1e-6)


def test_a_kernel_does_not_come_back_from_another_size():
    kernel = np.random.default_rng(0).standard_normal((32, 32))
    for other, least in ((8, 0.9), (16, 0.9), (48, 0.9)):
        there, back = flexi.pseudo_inverse(32, other), flexi.pseudo_inverse(other, 32)
        again = back @ there @ kernel @ there.T @ back.T
        assert np.linalg.norm(again - kernel) > least * np.linalg.norm(kernel)
    # By a factor of four only the middle of each block is read.
    read = np.abs(flexi.pseudo_inverse(32, 8)).max(axis=0) > 1e-12
    assert read.reshape(8, 4).tolist() == [[False, True, True, False]] * 8


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradients_reach_what_is_stored_and_equal_float64(jit_compile):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((6 * 6 * 3, 5)).astype(np.float32)
    table = rng.standard_normal((1, 16, 5)).astype(np.float32)
    slopes = [rng.standard_normal(x).astype(np.float32) for x in ((4 * 4 * 3, 5), (1, 36, 5))]

    @tf.function(jit_compile=jit_compile, autograph=False)
    def compute(kernel, table):
        with tf.GradientTape() as tape:
            tape.watch((kernel, table))
            resized = flexi.resize_kernel(kernel, 6, 4), flexi.resize_positions(table, 4, 6)
        return resized, tape.gradient(resized, (kernel, table), output_gradients=slopes)

    outputs, gradients = compute(tf.constant(kernel), tf.constant(table))
    matrix = np.kron(*[flexi.pseudo_inverse(6, 4)] * 2)
    of_kernel = np.einsum("yx,xcw->ycw", matrix, kernel.reshape(36, 3, 5).astype(np.float64))
    np.testing.assert_allclose(outputs[0], of_kernel.reshape(48, 5), rtol=1e-5, atol=1e-5)
    back = np.einsum("yx,ycw->xcw", matrix, slopes[0].reshape(16, 3, 5).astype(np.float64))
    np.testing.assert_allclose(gradients[0], back.reshape(108, 5), rtol=1e-5, atol=1e-5)
    matrix = np.kron(*[flexi.triangle(4, 6)] * 2)
    np.testing.assert_allclose(outputs[1][0], matrix @ table[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[1][0], matrix.T @ slopes[1][0], rtol=1e-5, atol=1e-5)


def test_own_size_is_the_same_tensor():
    kernel, table = tf.zeros((12, 4)), tf.zeros((1, 9, 4))
    assert flexi.resize_kernel(kernel, 2, 2) is kernel
    assert flexi.resize_positions(table, 3, 3) is table


@pytest.fixture(scope="module")
def flexible():
    tiny = config.tiny(config.load_recipe("vit_s16"))
    grids = ["image.grids=[2,4,8]", "image.position_grid=3", "image.positions=learned"]
    sizes = ["image.size=32", "image.patch=8", "image.depth=1", "image.pool=tok", *grids]
    return config.override(tiny, [*sizes, "image.classes=5", "data.mixup=0"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tower_at_a_grid_is_the_vit_of_that_patch(flexible, precision):
    flexible = dataclasses.replace(flexible, precision=precision)
    model = two_tower.build(flexible)
    values = {name: x.numpy() for name, x in two_tower.named_variables(model).items()}
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    outputs = {}
    for grid in (2, 4, 8):
        one_size = {"grids": (), "position_grid": None, "patch": 32 // grid}
        plain = two_tower.build(
            dataclasses.replace(flexible, image=dataclasses.replace(flexible.image, **one_size))
        )
        resized = {
            "image/embedding/kernel": flexi.resize_kernel(
                values["image/embedding/kernel"], 8, 32 // grid
            ),
            "image/positions": flexi.resize_positions(values["image/positions"], 3, grid),
        }
        for name, variable in two_tower.named_variables(plain).items():
            variable.assign(resized.get(name, values[name]))
        outputs[grid] = model.look(pixels, variant=grid)["embedding"].numpy()
        np.testing.assert_allclose(outputs[grid], plain.look(pixels)["embedding"], atol=1e-6)
    assert np.abs(outputs[2] - outputs[8]).max() > 1e-3
    # The default is the largest.
    np.testing.assert_array_equal(model.look(pixels)["embedding"], outputs[8])
    assert model.image.variants == (2, 4, 8)


def test_one_set_of_parameters_serves_all_grids(flexible):
    variables = two_tower.named_variables(two_tower.build(flexible))
    assert variables["image/embedding/kernel"].shape == (8 * 8 * 3, 32)
    assert variables["image/positions"].shape == (1, 9, 32)
    # Not that of `lecun_normal`, which is for one size of patches.
    spread = variables["image/embedding/kernel"].numpy().std()
    assert spread == pytest.approx(32**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("image.grids=[2, 5]", r"each of which divides image\.size.*grids=\[2, 5\], image"),
        ("image.grids=[0, 2]", r"image\.grids must hold numbers of patches.*grids=\[0, 2\]"),
        ("image.grids=[2, 4, 2]", r"image\.grids must each be there once"),
        ("image.default_grid=5", r"image\.default_grid must be one of image\.grids.*grid=5"),
        ("image.position_grid=1", r"image\.position_grid must be at least 2"),
        ("image.drop_remainder=true", r"image\.drop_remainder must be false with image\.grids"),
        ("image.grids=[]", r"image\.position_grid needs image\.grids.*position_grid=3"),
    ],
)
def test_wrong_grids_are_refused(flexible, assignment, message):
    with pytest.raises(ValueError, match=message):
        config.override(flexible, [assignment])


def test_default_grid_is_the_largest_or_the_one_that_is_named(flexible):
    assert flexible.image.grid == 8
    assert config.override(flexible, ["image.default_grid=4"]).image.grid == 4
    assert config.from_json(flexible.to_json()) == flexible
