"""What a run takes over from weights: their vocabulary, sizes and rules."""

import dataclasses
import json

import numpy as np
import pytest

from sigline import cli
from sigline.components.vocabulary.vocabulary import train_vocabulary
from sigline.trainer import config
from sigline.trainer.inputs import preprocess
from sigline.trainer.inputs import vocabularies as pieces
from sigline.trainer.run import Job
from sigline.trainer.training import loop, start
from sigline.trainer.weights import inheritance, tokenizer_json, weight_folders
from sigline.trainer.weights.model_weights import Weights

NAMES = (
    "image/embedding/kernel",
    "image/encoder/block_0/mlp/up/kernel",
    "image/positions",
    "text/encoder/block_0/mlp/up/kernel",
    "text/head/kernel",
    "text/positions",
    "text/tokens",
)
# Those that say nothing of the token table, for which a new vocabulary is right.
WITHOUT_TABLE = (
    ("image/.*",),
    ("image/.*", "text/encoder/.*"),
    ("(?!text/tokens).*",),
    ("text/(?!tokens|positions).*",),
)
WITH_TABLE = ((".*",), ("text/.*",), ("text/tokens",), ("image/.*", "text/to.*"))


@pytest.fixture(scope="module")
def tiny():
    return config.tiny(config.load_recipe("siglip_demo"))


@pytest.fixture(scope="module")
def other() -> bytes:
    return train_vocabulary(["a dog", "two cats", "the tree"], vocabulary_size=40)


@pytest.fixture
def weights(tiny, vocabulary):
    return Weights(tiny, {name: np.zeros(1, np.float32) for name in NAMES}, vocabulary)


def _starting(settings, patterns):
    return dataclasses.replace(settings, pretrained=tuple(patterns))


@pytest.mark.parametrize("patterns", WITH_TABLE)
def test_run_reads_by_the_vocabulary_of_its_weights(patterns, tiny, weights, vocabulary):
    job = Job(_starting(tiny, patterns), "data", None, "code", weights=weights)
    assert job.vocabulary == vocabulary
    again = dataclasses.replace(job, vocabulary=vocabulary)
    assert again.vocabulary == vocabulary


@pytest.mark.parametrize("patterns", WITH_TABLE)
def test_other_vocabulary_is_refused_by_both_digests(patterns, tiny, weights, vocabulary, other):
    with pytest.raises(ValueError, match="must be that of the weights") as caught:
        Job(_starting(tiny, patterns), "data", other, "code", weights=weights)
    for words in (vocabulary, other):
        assert tokenizer_json.digest(words)[:12] in str(caught.value)


@pytest.mark.parametrize("patterns", WITHOUT_TABLE)
def test_new_vocabulary_is_right_for_a_new_token_table(patterns, tiny, weights, other):
    for held in (weights, dataclasses.replace(weights, vocabulary=None)):
        job = Job(_starting(tiny, patterns), "data", other, "code", weights=held)
        assert job.vocabulary == other


def test_loop_refuses_another_vocabulary_too(tiny, weights, other, tmp_path):
    with pytest.raises(ValueError, match="must be that of the weights"):
        loop.train(
            _starting(tiny, [".*"]),
            split_dir=tmp_path,
            vocabulary=other,
            checkpoint_dir=tmp_path,
            weights=weights,
        )


def test_weights_without_their_vocabulary_start_no_token_table(tiny, weights, other):
    silent = dataclasses.replace(weights, vocabulary=None)
    for given in (other, None):
        with pytest.raises(ValueError, match=r"no vocabulary, so nothing tells .*--vocabulary"):
            Job(_starting(tiny, [".*"]), "data", given, "code", weights=silent)


def test_same_pieces_in_other_bytes_are_the_same_vocabulary(tiny, weights, vocabulary):
    # As another release of SentencePiece would write it: with a field that this one does not know,
    # here number 200 of the outermost message, and with the defaults left out.
    extended = vocabulary + bytes([0xC2, 0x0C, 0x01, 0x78])
    assert extended != vocabulary
    assert tokenizer_json.same(extended, vocabulary)
    job = Job(_starting(tiny, [".*"]), "data", extended, "code", weights=weights)
    assert job.vocabulary == vocabulary


@pytest.mark.parametrize("part", ["piece", "score", "type", "charsmap", "prefix", "model_type"])
def test_whatever_decides_tokens_makes_another_vocabulary(part, vocabulary):
    model = tokenizer_json._model_class().FromString(vocabulary)
    if part == "piece":
        model.pieces[5].piece += "x"
    elif part == "score":
        model.pieces[5].score += 1
    elif part == "type":
        model.pieces[5].type = 4
    elif part == "charsmap":
        model.normalizer_spec.precompiled_charsmap = b""
    elif part == "prefix":
        model.normalizer_spec.add_dummy_prefix = False
    else:
        model.trainer_spec.model_type = 2
    assert not tokenizer_json.same(model.SerializeToString(), vocabulary)


def test_byte_pairs_are_compared_by_content():
    numbers = {"a": 0, "b": 1, "ab": 2}
    written = pieces.serialized(numbers, ["a b"])
    spaced = json.dumps(json.loads(written), indent=1).encode()
    assert spaced != written
    assert tokenizer_json.same(spaced, written)
    assert not tokenizer_json.same(pieces.serialized(numbers, []), written)
    assert not tokenizer_json.same(b"words", b"other words")
    assert not tokenizer_json.same(b"{", written)


@pytest.fixture
def siglip_2(tiny, vocabulary):
    """Weights with other sizes and rules than the recipe's; only two of them show in shapes."""
    text = dataclasses.replace(
        tiny.text,
        vocabulary_size=300,
        length=24,
        strip_punctuation=False,
        squeeze_whitespace=False,
        pad_piece="<pad>",
        num_heads=4,
        pool="gap",
        block=dataclasses.replace(tiny.text.block, activation="gelu", norm_epsilon=1e-5),
    )
    image = dataclasses.replace(
        tiny.image,
        size=64,
        num_heads=4,
        interpolation="bicubic",
        antialias=True,
        mean=(0.1, 0.2, 0.3),
        pool="gap",
        block=dataclasses.replace(tiny.image.block, activation="quick_gelu", dropout=0.3),
    )
    settings = dataclasses.replace(tiny, text=text, image=image)
    return Weights(settings, {name: np.zeros(1, np.float32) for name in NAMES}, vocabulary)


def test_run_takes_sizes_and_rules_from_its_weights(tiny, siglip_2):
    recipe = _starting(config.override(tiny, ["text.block.dropout=0.1"]), [".*"])
    found = inheritance.inherit(recipe, siglip_2)
    theirs = siglip_2.config
    block = dataclasses.replace(theirs.text.block, dropout=0.1)
    assert found.text == dataclasses.replace(theirs.text, block=block)
    # Another resolution, and what is dropped in training, are the recipe's.
    block = dataclasses.replace(theirs.image.block, dropout=0.0)
    assert found.image == dataclasses.replace(theirs.image, size=recipe.image.size, block=block)
    assert dataclasses.replace(found, text=recipe.text, image=recipe.image) == recipe
    lines = inheritance.report(recipe, found, siglip_2)
    for expected in (
        "From the weights: text.length=24 (the recipe: 16)",
        "From the weights: text.pad_piece='<pad>' (the recipe: '</s>')",
        "From the weights: image.block.activation='quick_gelu' (the recipe: 'gelu_tanh')",
        "From the recipe: image.size=8 (the weights: 64); the positions of the patches are "
        "resampled",
    ):
        assert expected in lines


def test_run_takes_towers_of_other_sizes_from_its_weights(tiny, weights):
    # As a recipe of B/16 that starts from a small model: nothing but what to train is said.
    small = {"width": 24, "depth": 1, "mlp_dim": 40, "num_heads": 3}
    image = dataclasses.replace(tiny.image, patch=7, size=21, pool="gap", projection=12, **small)
    text = dataclasses.replace(tiny.text, pool="max", **small)
    held = dataclasses.replace(weights, config=dataclasses.replace(tiny, image=image, text=text))
    found = inheritance.inherit(_starting(tiny, [".*"]), held)
    assert (found.image, found.text) == (image, text)
    # A new pool and projection, for which their parameters are left out, stay the recipe's.
    new = ["image/(?!pool|projection).*", "text/(?!pool|head).*"]
    found = inheritance.inherit(_starting(tiny, new), held)
    assert (found.image.pool, found.image.projection) == (tiny.image.pool, tiny.image.projection)
    assert found.text.pool == tiny.text.pool
    for tower in (found.image, found.text):
        assert (tower.width, tower.depth, tower.num_heads) == (24, 1, 3)


def test_tower_that_is_not_pretrained_stays_the_recipes(tiny, siglip_2):
    found = inheritance.inherit(_starting(tiny, ["image/.*"]), siglip_2)
    assert found.text == tiny.text
    assert found.image.mean == (0.1, 0.2, 0.3)
    found = inheritance.inherit(_starting(tiny, ["text/(?!head).*"]), siglip_2)
    assert found.image == tiny.image
    # What is behind the encoder is new, and may pool otherwise.
    assert (found.text.pool, found.text.length) == (tiny.text.pool, 24)
    found = inheritance.inherit(_starting(tiny, ["text/encoder/.*"]), siglip_2)
    assert (found.text.length, found.text.pad_piece) == (tiny.text.length, tiny.text.pad_piece)
    assert found.text.num_heads == 4


def test_explicit_override_stays(tiny, siglip_2):
    overrides = ["text.strip_punctuation=true", "image.pool=map"]
    recipe = _starting(config.override(tiny, overrides), [".*"])
    found = inheritance.inherit(recipe, siglip_2, overrides)
    assert found.text.strip_punctuation
    assert found.image.pool == "map"
    assert not found.text.squeeze_whitespace


def test_run_without_weights_or_with_its_own_is_unchanged(tiny, weights):
    assert inheritance.inherit(tiny, None) is tiny
    recipe = _starting(tiny, [".*"])
    found = inheritance.inherit(recipe, weights)
    assert found.digest() == recipe.digest()
    assert inheritance.report(recipe, found, weights) == []
    assert inheritance.report(tiny, tiny, None) == []


def test_rules_of_the_weights_reach_the_tokens(tiny, siglip_2):
    found = inheritance.inherit(_starting(tiny, [".*"]), siglip_2)
    ids = preprocess.Tokenizer(siglip_2.vocabulary, found.text)(["a red ring"]).numpy()
    assert ids.shape == (1, 24)
    assert ids[0, -1] == 0  # <pad>, where the recipe fills with the end of text.


def test_import_refuses_a_vocabulary_beside_that_of_the_source(weights, other, tmp_path, capsys):
    weight_folders.save(tmp_path / "with", weights)
    weight_folders.save(tmp_path / "without", dataclasses.replace(weights, vocabulary=None))
    (tmp_path / "other.model").write_bytes(other)

    def bring(source, output):
        arguments = [
            "weights",
            "import",
            str(tmp_path / source),
            "--output",
            str(tmp_path / output),
        ]
        return cli.main([*arguments, "--vocabulary", str(tmp_path / "other.model")])

    assert bring("with", "a") == 2
    error = capsys.readouterr().err
    assert tokenizer_json.digest(other)[:12] in error
    assert tokenizer_json.digest(weights.vocabulary)[:12] in error
    assert bring("without", "b") == 0
    assert weight_folders.load_vocabulary(tmp_path / "b") == other


def test_vocabulary_of_an_image_tower_is_refused(weights, other):
    image = {n: x for n, x in weights.parameters.items() if n.startswith("image/")}
    alone = dataclasses.replace(weights, parameters=image, vocabulary=None)
    with pytest.raises(ValueError, match="belongs to a token table"):
        inheritance.with_vocabulary(alone, other)


def test_train_command_needs_no_vocabulary_beside_weights_and_keeps_theirs(
    tiny, vocabulary, other, split_dir, tmp_path, monkeypatch, capsys
):
    from sigline.trainer.models import two_tower

    settings = config.override(tiny, ["text.length=8", "text.pad_piece=<pad>"])
    variables = two_tower.named_variables(two_tower.build(settings))
    held = Weights(settings, {n: v.numpy() for n, v in variables.items()}, vocabulary)
    weight_folders.save(tmp_path / "w", held)
    monkeypatch.setattr(config, "load_recipe", lambda name: tiny)
    (tmp_path / "other.model").write_bytes(other)
    arguments = ["train", "--recipe", "siglip_demo", "--data", str(split_dir)]
    arguments += ["--weights", str(tmp_path / "w"), "--output", str(tmp_path / "out")]
    arguments += ["--set", 'pretrained=[".*"]', "--set", "steps=1"]
    assert cli.main([*arguments, "--vocabulary", str(tmp_path / "other.model")]) == 2
    assert "vocabulary of the weights=" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    assert "From the weights: text.length=8 (the recipe: 16)" in capsys.readouterr().err
    trained = weight_folders.load(tmp_path / "out" / "weights")
    assert trained.vocabulary == vocabulary
    assert trained.config.text == settings.text
    asset = tmp_path / "out" / "model" / "assets.extra" / "sentencepiece.model"
    assert asset.read_bytes() == vocabulary
    # Which is what serves, and what a later run starts from.
    start.make_tokenizer(trained.vocabulary, trained.config)


@pytest.mark.parametrize(("size", "side"), [(64, 80), (128, 160), (32, 40)])
def test_as_much_is_cut_off_at_another_resolution(tiny, siglip_2, size, side):
    image = dataclasses.replace(siglip_2.config.image, resampler="pillow", resize_side=80)
    settings = dataclasses.replace(siglip_2.config, image=image)
    weights = dataclasses.replace(siglip_2, config=settings)
    recipe = _starting(config.override(tiny, [f"image.size={size}"]), ["image/.*"])
    found = inheritance.inherit(recipe, weights).image
    assert (found.size, found.resize_side, found.resampler) == (size, side, "pillow")


def test_share_that_is_cut_off_stays_at_another_resolution(tiny, siglip_2):
    image = dataclasses.replace(siglip_2.config.image, resize_ratio=0.8)
    weights = dataclasses.replace(
        siglip_2, config=dataclasses.replace(siglip_2.config, image=image)
    )
    recipe = _starting(config.override(tiny, ["image.size=128"]), ["image/.*"])
    found = inheritance.inherit(recipe, weights).image
    assert (found.size, found.resized_side, found.resize_side) == (128, 160, None)


@pytest.mark.parametrize(
    ("size", "expected"),
    # As many patches as the weights have: their side. Others: the recipe's, cut as theirs is.
    [(32, (36, True, 54)), (64, (64, False, 96)), (16, (16, False, 24))],
)
def test_side_of_as_many_patches_is_that_of_the_weights(tiny, weights, size, expected):
    cut = {"resize": "crop", "resize_side": 54, "size": 36, "drop_remainder": True}
    theirs = dataclasses.replace(tiny.image, patch=8, **cut)
    held = dataclasses.replace(weights, config=dataclasses.replace(tiny, image=theirs))
    image = dataclasses.replace(tiny.image, patch=8, size=size)
    recipe = _starting(dataclasses.replace(tiny, image=image), ["image/.*"])
    found = inheritance.inherit(recipe, held).image
    assert (found.size, found.drop_remainder, found.resize_side) == expected


def _flexible(settings, **options):
    image = dataclasses.replace(settings.image, **({"grids": (2, 4), "position_grid": 3} | options))
    return dataclasses.replace(settings, image=image)


def test_grids_of_a_recipe_stay_and_the_kernel_is_that_of_the_weights(tiny, weights):
    # Another patch and as many of them would mean the side of the weights, were it not for grids.
    theirs = dataclasses.replace(tiny.image, patch=4, size=16)
    held = dataclasses.replace(weights, config=dataclasses.replace(tiny, image=theirs))
    recipe = _starting(_flexible(tiny, patch=8, size=32), ["image/.*"])
    found = inheritance.inherit(recipe, held).image
    assert (found.grids, found.position_grid, found.grid) == ((2, 4), 3, 4)
    assert (found.size, found.patch) == (32, 4)
    lines = inheritance.report(recipe, dataclasses.replace(recipe, image=found), held)
    assert any("the positions of the patches are resampled" in line for line in lines)
    same = dataclasses.replace(
        held,
        config=dataclasses.replace(tiny, image=dataclasses.replace(tiny.image, size=32, patch=8)),
    )
    recipe = dataclasses.replace(recipe, image=dataclasses.replace(recipe.image, position_grid=2))
    (line,) = inheritance.report(recipe, inheritance.inherit(recipe, same), same)
    assert "positions of 2 x 2 patches (the weights: 4 x 4), to which they are resampled" in line


def test_recipe_without_grids_has_those_of_its_weights_and_their_side(tiny, weights):
    held = dataclasses.replace(weights, config=_flexible(tiny, patch=8, size=32, default_grid=2))
    recipe = dataclasses.replace(tiny, image=dataclasses.replace(tiny.image, patch=4, size=20))
    found = inheritance.inherit(_starting(recipe, ["image/.*"]), held).image
    assert (found.grids, found.position_grid, found.default_grid) == ((2, 4), 3, 2)
    assert (found.size, found.patch) == (32, 8)
    # Grids are no part of a tower that is taken in parts.
    assert not inheritance.inherit(_starting(recipe, ["image/encoder/.*"]), held).image.grids
