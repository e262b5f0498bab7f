import dataclasses

import numpy as np
import pytest

from sigline.trainer import config
from sigline.trainer.models import positions, two_tower
from sigline.trainer.training import loop, start
from sigline.trainer.weights import model_weights, weight_folders
from sigline.trainer.weights.model_weights import Weights


@pytest.fixture(scope="module")
def tiny():
    return config.tiny(config.load_recipe("siglip_demo"))


@pytest.fixture(scope="module")
def given(tiny, vocabulary):
    model = two_tower.build(dataclasses.replace(tiny, seed=7))
    parameters = {n: v.numpy() for n, v in two_tower.named_variables(model).items()}
    return Weights(tiny, parameters, vocabulary)


def _shapes(settings):
    model = two_tower.build(settings)
    return {n: tuple(v.shape) for n, v in two_tower.named_variables(model).items()}


def test_folder_returns_what_was_saved(given, tmp_path):
    weight_folders.save(tmp_path / "w", dataclasses.replace(given, vocabulary=b"words"))
    found = weight_folders.load(tmp_path / "w")
    assert found.config == given.config
    assert found.vocabulary == b"words"
    assert set(found.parameters) == set(given.parameters)
    for name, value in given.parameters.items():
        assert found.parameters[name].shape == value.shape
        np.testing.assert_array_equal(found.parameters[name], value)


def test_folder_is_not_overwritten(given, tmp_path):
    weight_folders.save(tmp_path / "w", given)
    with pytest.raises(ValueError, match="must not be there yet"):
        weight_folders.save(tmp_path / "w", given)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_failed_save_leaves_nothing_behind(given, tmp_path):
    broken = dataclasses.replace(given, vocabulary="no bytes")
    with pytest.raises(TypeError):
        weight_folders.save(tmp_path / "w", broken)
    assert not list(tmp_path.iterdir())


def test_only_what_matches_is_taken(given, tiny):
    found = model_weights.fitted(given, _shapes(tiny), ["image/.*"])
    assert found
    assert all(name.startswith("image/") for name in found)


def test_what_does_not_fit_is_listed(given, tiny):
    other = config.override(tiny, ["image.depth=1", "image.pool=tok", "image.mlp_dim=48"])
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        model_weights.fitted(given, _shapes(other), ["image/.*"])
    message = str(caught.value)
    assert "Missing: image/token." in message
    assert "Left over: image/encoder/block_1/attention/key/bias" in message
    assert "image/encoder/block_0/mlp/up/kernel (32, 48) but given (32, 64)" in message


def test_pattern_of_nothing_is_refused(given, tiny):
    with pytest.raises(ValueError, match=r"No parameter .*pretrained=\['img/\.\*'\]"):
        model_weights.fitted(given, _shapes(tiny), ["img/.*"])


def test_positions_are_resampled_to_another_resolution(given, tiny):
    larger = config.override(tiny, [f"image.size={2 * tiny.image.size}"])
    found = model_weights.fitted(given, _shapes(larger), ["image/.*"])["image/positions"]
    expected = positions.resample(given.parameters["image/positions"], 4)
    np.testing.assert_array_equal(found, expected)


def test_run_starts_from_the_weights_that_it_asks_for(given, tiny, split_dir, vocabulary, tmp_path):
    asked = config.override(
        tiny, ['pretrained=["image/.*"]', 'optimizer.rates=[["image/.*", null], [".*", 1]]']
    )
    result = loop.train(
        asked,
        split_dir=split_dir,
        vocabulary=vocabulary,
        checkpoint_dir=tmp_path,
        weights=given,
    )
    start = two_tower.named_variables(two_tower.build(asked))
    for name, value in two_tower.named_variables(result.model).items():
        if name.startswith("image/"):
            assert value.numpy().tobytes() == given.parameters[name].tobytes(), name
    name = "text/tokens"
    end = two_tower.named_variables(result.model)[name].numpy()
    assert np.abs(end - start[name].numpy()).max() < np.abs(end - given.parameters[name]).max()


def test_resumed_run_does_not_start_again(given, tiny, split_dir, vocabulary, tmp_path):
    asked = config.override(tiny, ['pretrained=[".*"]'])
    options = {"split_dir": split_dir, "vocabulary": vocabulary, "checkpoint_dir": tmp_path}
    first = loop.train(asked, weights=given, **options)
    again = loop.train(asked, weights=given, **options)
    for name, value in two_tower.named_variables(first.model).items():
        np.testing.assert_array_equal(two_tower.named_variables(again.model)[name], value)


def test_weights_that_are_asked_for_must_be_given(tiny, given):
    asked = config.override(tiny, ['pretrained=["image/.*"]'])
    model = two_tower.build(tiny)
    with pytest.raises(ValueError, match="starts from weights, which must be given"):
        start.start_from(model, None, asked)
    with pytest.raises(ValueError, match="pretrained must name the parameters"):
        start.start_from(model, given, tiny)
