import numpy as np
import pytest
import reference_big_vision as reference
import tensorflow as tf

from sigline.trainer import two_tower
from sigline.trainer.weights import checkpoint

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
    model = _image_tower(checkpoint.load(path, **options))
    expected = reference.embed_image(parameters, IMAGES)
    np.testing.assert_allclose(model.embed_image(tf.constant(IMAGES)), expected, atol=1e-5)


def test_two_towers_give_the_references_embeddings(tmp_path):
    parameters = reference.random_parameters()
    path = _save(tmp_path / "siglip.npz", parameters)
    _check_image(path, parameters)
    weights = checkpoint.load(path)
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
    weights = checkpoint.load(path)
    assert all(name.startswith("image/") for name in weights.parameters)
    assert weights.config.image.pool == pool


def test_head_of_a_plain_vit_can_be_dropped(tmp_path):
    parameters = reference.random_parameters(pool="gap", text=False)
    plain = {name.removeprefix("img/"): value for name, value in parameters.items()}
    plain |= {"head/kernel": np.zeros((16, 10), np.float32), "head/bias": np.zeros(10, np.float32)}
    path = _save(tmp_path / "vit.npz", plain)
    assert checkpoint.load(path).config.image.classes == 10
    _check_image(path, parameters, drop=["img/head/.*"])


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
        checkpoint.load(path)
    _check_image(path, parameters, drop=["txt/.*"])


def test_missing_and_left_over_tensors_are_listed(tmp_path):
    parameters = reference.random_parameters()
    parameters["txt/head/extra"] = parameters.pop("txt/head/bias")
    path = _save(tmp_path / "x.npz", parameters)
    with pytest.raises(ValueError, match=r"Missing: txt/head/bias\. Left over: txt/head/extra\."):
        checkpoint.load(path)


def test_file_without_an_image_tower_is_refused(tmp_path):
    path = _save(tmp_path / "x.npz", {"a": np.zeros(2)})
    with pytest.raises(ValueError, match=r"no image tower of big_vision. Received: img/a"):
        checkpoint.load(path)


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **{"params/img/a": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle"):
        checkpoint.load(tmp_path / "x.npz")


def test_quantised_weights_are_refused(tmp_path):
    parameters = reference.random_parameters()
    parameters["txt/head/kernel"] = parameters["txt/head/kernel"].astype(np.int8)
    path = _save(tmp_path / "x.npz", parameters)
    with pytest.raises(ValueError, match=r"not quantised\. Received: txt/head/kernel int8"):
        checkpoint.load(path)
