import numpy as np
import pytest
import reference_big_vision as reference
import tensorflow as tf

from sigline import cli
from sigline.trainer.models import positions, two_tower
from sigline.trainer.weights import grids, weight_folders

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 12, 12, 3)).astype(np.float32)
IDS = np.random.default_rng(0).integers(0, 30, (4, 5))


def _save(path, parameters, prefix="params/"):
    np.savez(path, **{f"{prefix}{name}": value for name, value in parameters.items()})
    return path


def _image_tower(weights):
    model = two_tower.build(weights.config)
    variables = two_tower.named_variables(model)
    for name, value in weights.parameters.items():
        variables[name].assign(value)
    return model


def _check_image(path, parameters, **options):
    model = _image_tower(weight_folders.load(path, **options))
    expected = reference.embed_image(parameters, IMAGES)
    np.testing.assert_allclose(model.embed_image(tf.constant(IMAGES)), expected, atol=1e-5)


def test_two_towers_give_the_references_embeddings(tmp_path):
    parameters = reference.random_parameters()
    path = _save(tmp_path / "siglip.npz", parameters)
    _check_image(path, parameters)
    weights = weight_folders.load(path)
    model = _image_tower(weights)
    assert set(weights.parameters) == set(two_tower.named_parameters(model))
    expected = reference.embed_text(parameters, IDS)
    np.testing.assert_allclose(model.embed_text(tf.constant(IDS, tf.int32)), expected, atol=1e-5)
    assert float(model.log_temperature.value) == parameters["t"][0]
    assert float(model.bias.value) == parameters["b"][0]
    assert weights.config.image.num_heads == 2


def test_optimizer_state_is_left_alone(tmp_path):
    parameters = reference.random_parameters()
    named = {f"params/{n}": x for n, x in parameters.items()} | {"opt/0/count": np.zeros(())}
    np.savez(tmp_path / "x.npz", **named)
    _check_image(tmp_path / "x.npz", parameters)


@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
def test_plain_vit_has_names_without_a_tower(tmp_path, pool):
    parameters = reference.random_parameters(pool=pool, text=False)
    plain = {name.removeprefix("img/"): value for name, value in parameters.items()}
    path = _save(tmp_path / "vit.npz", plain)
    _check_image(path, parameters)
    weights = weight_folders.load(path)
    assert all(name.startswith("image/") for name in weights.parameters)
    assert weights.config.image.pool == pool


def test_head_of_a_plain_vit_can_be_dropped(tmp_path):
    parameters = reference.random_parameters(pool="gap", text=False)
    plain = {name.removeprefix("img/"): value for name, value in parameters.items()}
    plain |= {"head/kernel": np.zeros((16, 10), np.float32), "head/bias": np.zeros(10, np.float32)}
    path = _save(tmp_path / "vit.npz", plain)
    assert weight_folders.load(path).config.image.classes == 10
    _check_image(path, parameters, drop=["img/head/.*"])


@pytest.mark.parametrize("tanh", [True, False])
def test_layer_before_the_head_is_a_projection(tmp_path, tanh):
    parameters = reference.random_parameters(pool="tok", text=False)
    plain = {name.removeprefix("img/"): value for name, value in parameters.items()}
    rng = np.random.default_rng(1)
    kernel, bias = rng.standard_normal((16, 6)), rng.standard_normal(6)
    plain |= {"pre_logits/kernel": kernel.astype(np.float32)}
    plain |= {"pre_logits/bias": bias.astype(np.float32)}
    plain |= {"head/kernel": np.ones((6, 10), np.float32), "head/bias": np.zeros(10, np.float32)}
    path = _save(tmp_path / "vit.npz", plain)
    said = [] if tanh else ["image.projection_tanh=false"]
    weights = weight_folders.load(path, assignments=said)
    assert (weights.config.image.projection, weights.config.image.classes) == (6, 10)
    outputs = _image_tower(weights).look(tf.constant(IMAGES))
    pooled = reference.pool_image(parameters, IMAGES) @ kernel + bias
    expected = np.tanh(pooled) if tanh else pooled
    np.testing.assert_allclose(
        outputs["classes"], expected.sum(1, keepdims=True).repeat(10, 1), atol=1e-4
    )


def test_augreg_layout_is_understood(tmp_path):
    # Blocks numbered through, positions inside the encoder and with one for the class token.
    parameters = reference.random_parameters(pool="tok", text=False)
    plain = {name.removeprefix("img/"): value for name, value in parameters.items()}
    table, token = plain.pop("pos_embedding"), plain["cls"]
    of_token = np.full((1, 1, 16), 0.25, np.float32)
    plain["Transformer/posembed_input/pos_embedding"] = np.concatenate([of_token, table], 1)
    plain["cls"] = token - of_token
    renamed = {}
    for name, value in plain.items():
        for new, old in (
            (reference.ATTENTION, "MultiHeadDotProductAttention_1"),
            ("LayerNorm_1", "LayerNorm_2"),
            ("MlpBlock_0", "MlpBlock_3"),
        ):
            name = name.replace(f"/{new}/", f"/{old}/")
        renamed[name] = value
    path = _save(tmp_path / "augreg.npz", renamed, prefix="")
    _check_image(path, parameters)


def test_pool_that_is_not_in_a_group_is_understood(tmp_path):
    parameters = reference.random_parameters()
    inlined = {name.replace("img/MAPHead_0/", "img/"): x for name, x in parameters.items()}
    _check_image(_save(tmp_path / "old.npz", inlined), parameters)


def test_positions_inside_the_encoder_are_found(tmp_path):
    # The layout of most ViTs before 2022.
    parameters = reference.random_parameters(pool="gap", text=False)
    plain = {name.removeprefix("img/"): value for name, value in parameters.items()}
    plain["Transformer/pos_embedding"] = plain.pop("pos_embedding")
    _check_image(_save(tmp_path / "old.npz", plain), parameters)


def test_stacked_blocks_are_parted(tmp_path):
    parameters = reference.random_parameters()
    stacked = {}
    for name, value in parameters.items():
        if "encoderblock_0/" in name:
            other = parameters[name.replace("encoderblock_0/", "encoderblock_1/")]
            stacked[name.replace("encoderblock_0/", "encoderblock/")] = np.stack([value, other])
        elif "encoderblock_1/" not in name:
            stacked[name] = value
    _check_image(_save(tmp_path / "scan.npz", stacked), parameters)


def test_bfloat16_that_lost_its_type_is_read(tmp_path):
    import ml_dtypes

    parameters = reference.random_parameters(text=False)
    halves = {n: x.astype(ml_dtypes.bfloat16) for n, x in parameters.items()}
    typeless = {n: x.view(np.dtype("V2")) for n, x in halves.items()}
    path = _save(tmp_path / "half.npz", typeless)
    _check_image(path, {n: x.astype(np.float32) for n, x in halves.items()})


def test_text_tower_of_another_kind_is_named(tmp_path):
    parameters = reference.random_parameters(text=False)
    bert = {"txt/BertEncoder_0/x": np.zeros(3, np.float32), "t": np.zeros(1, np.float32)}
    path = _save(tmp_path / "lit.npz", parameters | bert)
    with pytest.raises(ValueError, match=r"LiT has a BERT.*--drop 'txt/\.\*'"):
        weight_folders.load(path)
    _check_image(path, parameters, drop=["txt/.*"])


def test_missing_and_left_over_tensors_are_listed(tmp_path):
    parameters = reference.random_parameters()
    parameters["txt/head/extra"] = parameters.pop("txt/head/bias")
    path = _save(tmp_path / "x.npz", parameters)
    with pytest.raises(ValueError, match=r"Missing: txt/head/bias\. Left over: txt/head/extra\."):
        weight_folders.load(path)


def test_file_without_an_image_tower_is_refused(tmp_path):
    path = _save(tmp_path / "x.npz", {"a": np.zeros(2)})
    with pytest.raises(ValueError, match=r"no image tower of big_vision. Received: img/a"):
        weight_folders.load(path)


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **{"params/img/a": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle"):
        weight_folders.load(tmp_path / "x.npz")


def test_quantised_weights_are_refused(tmp_path):
    parameters = reference.random_parameters()
    parameters["txt/head/kernel"] = parameters["txt/head/kernel"].astype(np.int8)
    path = _save(tmp_path / "x.npz", parameters)
    with pytest.raises(ValueError, match=r"not quantised\. Received: txt/head/kernel int8"):
        weight_folders.load(path)


def _import_text(path, *assignments):
    """Returns the embeddings of texts, and what was assumed."""
    weights = weight_folders.load(path, assignments=assignments)
    return _image_tower(weights).embed_text(tf.constant(IDS, tf.int32)), weights.assumed


@pytest.mark.parametrize("pool", ["last", "first", "gap", "max", "map"])
def test_pool_of_texts_is_the_chosen_one(tmp_path, pool):
    parameters = reference.random_parameters(text_pool=pool)
    path = _save(tmp_path / "x.npz", parameters)
    found, assumed = _import_text(path, f"text.pool={pool}")
    expected = reference.embed_text(parameters, IDS, pool=pool)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not [item for item in assumed if "text.pool" in item]


def test_pool_that_the_file_does_not_tell_is_assumed_and_said(tmp_path):
    parameters = reference.random_parameters()
    found, assumed = _import_text(_save(tmp_path / "x.npz", parameters))
    np.testing.assert_allclose(found, reference.embed_text(parameters, IDS), atol=1e-5)
    assert assumed == (
        "image.size=12: 3 x 3 patches of 4 pixels",
        "pixels as of big_vision: bilinear, image.antialias=false",
        "text.pool=last",
        "texts as of SigLIP",
    )


def test_attention_pool_of_texts_is_told_by_the_file(tmp_path):
    parameters = reference.random_parameters(text_pool="map")
    path = _save(tmp_path / "x.npz", parameters)
    found, assumed = _import_text(path)
    expected = reference.embed_text(parameters, IDS, pool="map")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "text.pool=last" not in assumed
    with pytest.raises(ValueError, match=r"text\.pool must be map, .*Received: text\.pool=gap"):
        weight_folders.load(path, assignments=["text.pool=gap"])
    without = _save(tmp_path / "y.npz", reference.random_parameters())
    with pytest.raises(ValueError, match=r"text\.pool must be one without parameters"):
        weight_folders.load(without, assignments=["text.pool=map"])


def test_positions_of_texts_that_were_added_twice_are_folded(tmp_path):
    parameters = reference.random_parameters()
    table = parameters["txt/pos_embedding"]
    second = np.random.default_rng(1).standard_normal(table.shape).astype(np.float32)
    twice = parameters | {"txt/pos_embedding": table - second}
    path = _save(tmp_path / "x.npz", twice | {"txt/Encoder_0/pos_embedding": second})
    found, _ = _import_text(path)
    np.testing.assert_allclose(found, reference.embed_text(parameters, IDS), atol=1e-5)


def test_pictures_of_patches_to_spare_have_the_size_that_is_chosen(tmp_path):
    parameters = reference.random_parameters(text=False)
    path = _save(tmp_path / "x.npz", parameters)
    weights = weight_folders.load(path, assignments=["image.size=14"])
    assert (weights.config.image.size, weights.config.image.grid) == (14, 3)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 14, 14, 3)).astype(np.float32)
    found = _image_tower(weights).embed_image(tf.constant(images))
    expected = reference.embed_image(parameters, images[:, :12, :12])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for size in (11, 16):
        with pytest.raises(ValueError, match=f"must be 12 to 15, .*Received: image.size={size}"):
            weight_folders.load(path, assignments=[f"image.size={size}"])
    with pytest.raises(ValueError, match="must be a whole number of at least 4, a patch"):
        weight_folders.load(path, assignments=["image.size=large"])


def test_released_model_of_27_patches_of_14_has_pictures_of_384():
    assert grids.size(27, 14) == 384
    assert grids.size(16, 14) == 224
    assert grids.size(24, 16) == 384


@pytest.mark.parametrize("patches", [4 * 6, 5 * 7, 10])
def test_patches_that_are_no_square_are_refused(tmp_path, patches):
    parameters = reference.random_parameters(text=False)
    parameters["img/pos_embedding"] = np.zeros((1, patches, 16), np.float32)
    path = _save(tmp_path / "x.npz", parameters)
    with pytest.raises(ValueError, match=f"square pictures .* positions of {patches} patches"):
        weight_folders.load(path)


def _smooth_positions(height, width, dim=64, seed=0):
    """Returns positions whose neighbours are alike, as learned ones are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    places = np.stack([y.ravel() / 3, x.ravel() / 3], 1)
    waves = np.cos(places @ rng.standard_normal((2, dim)) + rng.uniform(0, 6, dim))
    return (waves + 0.3 * rng.standard_normal(waves.shape)).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (2, 18), (7, 28), (8, 18)])
def test_positions_of_another_form_are_refused(height, width):
    with pytest.raises(ValueError, match=f"as those of {height} x {width} patches.*image.size=N"):
        grids.check_square(_smooth_positions(height, width))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 7, 12, 14, 16, 24])
def test_positions_of_a_square_pass(side):
    for seed in range(20):
        grids.check_square(_smooth_positions(side, side, seed=seed))
        rng = np.random.default_rng(seed)
        grids.check_square(rng.standard_normal((side * side, 16)))
        # Rows, or columns, that are hardly told apart.
        rows = rng.standard_normal((side, 64)).cumsum(axis=0)
        small = 0.05 * rng.standard_normal((side * side, 64))
        grids.check_square(np.repeat(rows, side, axis=0) + small)
        grids.check_square(np.tile(rows, (side, 1)) + small)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 7, 3, 16), r"Patches must be square.*\(5, 7, 3, 16\)"),
        ((4, 4, 1, 16), "of 3 channels"),
        ((48, 16), r"any aspect \(NaFlex\)"),
    ],
)
def test_patches_of_another_kind_are_refused(tmp_path, shape, message):
    parameters = reference.random_parameters(text=False)
    parameters["img/embedding/kernel"] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        weight_folders.load(_save(tmp_path / "x.npz", parameters))


def test_fixed_positions_need_the_size_of_the_pictures(tmp_path):
    parameters = reference.random_parameters(text=False)
    del parameters["img/pos_embedding"]
    path = _save(tmp_path / "x.npz", parameters)
    with pytest.raises(ValueError, match=r"does not tell how large .*--set image\.size=N"):
        weight_folders.load(path)
    weights = weight_folders.load(path, assignments=["image.size=12"])
    assert not [item for item in weights.assumed if "image.size" in item]
    parameters["img/pos_embedding"] = positions.sincos_2d(3, 16)
    expected = reference.embed_image(parameters, IMAGES)
    found = _image_tower(weights).embed_image(tf.constant(IMAGES))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def _at_grid(parameters, grid, size):
    """Returns the parameters of the plain ViT that a FlexiViT is at a grid."""
    kernel, table = parameters["img/embedding/kernel"], parameters["img/pos_embedding"]
    old, new, channels = len(kernel), size // grid, kernel.shape[2] * kernel.shape[3]
    # The resize of every basis picture, with both axes at once.
    basis = tf.reshape(tf.eye(old * old), (-1, old, old, 1))
    resize = tf.reshape(tf.image.resize(basis, (new, new)), (old * old, new * new)).numpy()
    resized = np.linalg.pinv(resize.astype(np.float64)) @ kernel.reshape(old * old, channels)
    side = int(table.shape[1] ** 0.5)
    squares = tf.reshape(table, (1, side, side, -1))
    positions_there = tf.image.resize(squares, (grid, grid), antialias=True)
    return parameters | {
        "img/embedding/kernel": resized.reshape(new, new, *kernel.shape[2:]).astype(np.float32),
        "img/pos_embedding": tf.reshape(positions_there, (1, grid * grid, -1)).numpy(),
    }


def test_flexivit_is_the_references_at_every_grid_that_is_stated(tmp_path):
    parameters = reference.random_parameters(pool="tok", text=False)
    path = _save(tmp_path / "flexivit.npz", parameters)
    stated = ["image.grids=[2,3,6]", "image.size=24"]
    weights = weight_folders.load(path, assignments=stated)
    image = weights.config.image
    assert (image.size, image.patch, image.position_grid, image.grid) == (24, 4, 3, 6)
    model = _image_tower(weights)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)
    for grid in image.grids:
        expected = reference.embed_image(_at_grid(parameters, grid, 24), images)
        answers = model.look(tf.constant(images), variant=grid)
        np.testing.assert_allclose(answers[two_tower.EMBEDDING], expected, atol=1e-5)
    chosen = weight_folders.load(path, assignments=[*stated, "image.default_grid=3"])
    assert chosen.config.image.grid == 3
    released = weight_folders.load(path, assignments=["image.grids=[5,6,8,10,12,15,16,20,24,30]"])
    assert released.config.image.size == 240
    assert "image.size=240, as of released FlexiViTs" in released.assumed


def test_grids_that_cannot_be_are_refused(tmp_path):
    parameters = reference.random_parameters(pool="tok", text=False)
    path = _save(tmp_path / "x.npz", parameters)
    for value in ("7", "many", "[]", "[2,true]", '["2"]'):
        with pytest.raises(ValueError, match="must be a list of patches along a side"):
            weight_folders.load(path, assignments=[f"image.grids={value}"])
    with pytest.raises(ValueError, match=r"each of which divides .*size=240"):
        weight_folders.load(path, assignments=["image.grids=[7]"])
    with pytest.raises(ValueError, match=r"each of image\.grids divides.*image\.size=0"):
        weight_folders.load(path, assignments=["image.grids=[2]", "image.size=0"])
    with pytest.raises(ValueError, match=r"image\.default_grid needs image\.grids"):
        weight_folders.load(path, assignments=["image.default_grid=3"])
    del parameters["img/pos_embedding"]
    fixed = _save(tmp_path / "y.npz", parameters)
    with pytest.raises(ValueError, match=r"has learned positions.*no img/pos_embedding"):
        weight_folders.load(fixed, assignments=["image.grids=[2]"])


def test_what_the_file_tells_is_not_set(tmp_path):
    path = _save(tmp_path / "x.npz", reference.random_parameters())
    with pytest.raises(ValueError, match=r"the file does not tell: image\.size, .*image\.width=3"):
        weight_folders.load(path, assignments=["image.width=3"])
    with pytest.raises(ValueError, match=r"Received: 'text\.pool'"):
        weight_folders.load(path, assignments=["text.pool"])
    with pytest.raises(ValueError, match=r"text\.pool must be one of last, .*Received.*'mean'"):
        weight_folders.load(path, assignments=["text.pool=mean"])
    with pytest.raises(ValueError, match=r"text\.end_id must be given with text\.pool=end"):
        weight_folders.load(path, assignments=["text.pool=end"])
    chosen = weight_folders.load(path, assignments=["text.pool=end", "text.end_id=1"])
    assert (chosen.config.text.pool, chosen.config.text.end_id) == ("end", 1)
    alone = _save(tmp_path / "y.npz", reference.random_parameters(text=False))
    with pytest.raises(ValueError, match=r"has no text tower\. Received: --set text\.pool"):
        weight_folders.load(alone, assignments=["text.pool=gap"])


def test_text_rules_of_siglip_2_are_told_by_its_vocabulary(tmp_path):
    parameters = reference.random_parameters()
    parameters["txt/Embed_0/embedding"] = np.zeros((256_000, 16), np.float32)
    weights = weight_folders.load(_save(tmp_path / "x.npz", parameters))
    text = weights.config.text
    assert (text.strip_punctuation, text.end_piece, text.pad_piece) == (False, "<eos>", "<pad>")
    assert "texts as of SigLIP 2" in weights.assumed


def test_weights_of_our_own_tell_all_themselves(tmp_path):
    path = _save(tmp_path / "x.npz", reference.random_parameters())
    weight_folders.save(tmp_path / "w", weight_folders.load(path))
    with pytest.raises(ValueError, match=r"tell all themselves\. Received: --set text\.pool=gap"):
        weight_folders.load(tmp_path / "w", assignments=["text.pool=gap"])


def test_command_says_what_it_assumed(tmp_path, capsys):
    path = _save(tmp_path / "x.npz", reference.random_parameters())
    arguments = ["weights", "import", str(path), "--set", "text.pool=gap"]
    assert cli.main([*arguments, "--output", str(tmp_path / "w")]) == 0
    printed = capsys.readouterr().out
    assert "Assumed image.size=12: 3 x 3 patches of 4 pixels\n" in printed
    assert "set others by --set KEY=VALUE" in printed
    assert "text.pool" not in printed
    assert weight_folders.load(tmp_path / "w").config.text.pool == "gap"
