"""ViT and DeiT of Hugging Face give the answers of their definition, and come back as they were."""

import dataclasses
import json
import re

import numpy as np
import pytest
import reference_vit as reference
import safetensors.numpy
import tensorflow as tf
from test_hugging_face import model_of

from sigline import cli
from sigline.schemas.labels import LabelSet
from sigline.trainer import config, sources
from sigline.trainer.config import BlockConfig, ClassifyConfig, ImageTowerConfig, TrainConfig
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import frozen
from sigline.trainer.training import start
from sigline.trainer.weights import (
    hugging_face_folders,
    hugging_face_vit,
    inheritance,
    weight_folders,
)

NAMES = ("tench", "crane", "crane", "maillot", "maillot, tank suit")
# Kind, heads and further arguments of parameters, and what else the config.json says.
MODELS = {
    "vit": ("vit", ("classifier",), {}, {}),
    "vit_without_biases": ("vit", ("classifier",), {"qkv_bias": False}, {"qkv_bias": False}),
    "vit_remainder": ("vit", ("classifier",), {}, {"image_size": 14, "layer_norm_eps": 1e-6}),
    "vit_headless": ("vit", (), {"pooler": True}, {}),
    "deit": ("deit", ("classifier",), {}, {}),
    "deit_teacher": ("deit", reference.TEACHER_HEADS, {}, {}),
    "deit_headless": ("deit", (), {"pooler": True}, {}),
}


def write(folder, name="vit", changes=None):
    """Writes a folder of Hugging Face, and returns its tensors and its config.json."""
    kind, heads, options, stated = MODELS[name]
    tensors = reference.random_parameters(kind, heads, **options)
    described = {"model_type": kind, **reference.SIZES, **stated}
    if heads:
        described["id2label"] = {str(i): text for i, text in enumerate(NAMES)}
    described |= changes or {}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described))
    safetensors.numpy.save_file(tensors, str(folder / "model.safetensors"))
    return tensors, described


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(-1, 1, (3, 14, 14, 3)).astype(np.float32)


def check_outputs(model, tensors, images, epsilon):
    """Asserts that a model gives the embeddings and logits of the definition."""
    size = model.config.image.size
    images = images[:, :size, :size]
    outputs = model.look(tf.constant(images))
    states = reference.tokens(tensors, images, epsilon=epsilon)[:, 0]
    unit = states / np.linalg.norm(states, axis=-1, keepdims=True)
    np.testing.assert_allclose(outputs[two_tower.EMBEDDING], unit, atol=1e-5)
    expected = reference.logits(tensors, images, epsilon=epsilon)
    if expected:
        mean = sum(expected.values()) / len(expected)
        np.testing.assert_allclose(outputs[two_tower.CLASSES], mean, atol=1e-5)
    if len(expected) == 2:
        for head, theirs in ((two_tower.CLASS_HEAD, 0), (two_tower.DISTILLATION_HEAD, 1)):
            logits = expected[reference.TEACHER_HEADS[theirs]]
            np.testing.assert_allclose(outputs[head], logits, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_definition_and_survive_the_way_back(name, images, tmp_path):
    tensors, described = write(tmp_path / "theirs", name)
    weights = weight_folders.load(tmp_path / "theirs")
    parameters = dict(weights.parameters)
    model_config = weights.config
    if model_config.text is not None:
        # A tower alone; `model_of` asks for all parameters of a model.
        model_config = start.tower_config(model_config)
        model = two_tower.build(model_config)
        start.start_from(model, weights, model_config)
    else:
        model = model_of(weights)
    check_outputs(model, tensors, images, described.get("layer_norm_eps", 1e-12))

    hugging_face_folders.save(tmp_path / "ours", weights)
    written = safetensors.numpy.load_file(str(tmp_path / "ours" / "model.safetensors"))
    expected = {key: value for key, value in tensors.items() if "pooler" not in key}
    assert {key: value.shape for key, value in written.items()} == {
        key: value.shape for key, value in expected.items()
    }
    # Tokens and their positions are one parameter here, but beside a distillation token.
    moved = re.compile("" if name in ("deit_teacher", "deit_headless") else r".*(token|positi).*")
    for key, value in expected.items():
        if not moved.fullmatch(key):
            np.testing.assert_array_equal(written[key], value, err_msg=key)
    again = weight_folders.load(tmp_path / "ours")
    assert (again.config, again.labels) == (weights.config, weights.labels)
    for key, value in parameters.items():
        np.testing.assert_array_equal(again.parameters[key], value, err_msg=key)


def test_newer_names_are_read_as_the_others(tmp_path):
    """`save_pretrained(save_original_format=False)` of transformers 5 writes such names."""
    tensors, _ = write(tmp_path, "deit_teacher")
    newer = {
        re.sub(r"encoder\.layer", "layers", key)
        .replace("attention.attention.query", "attention.q_proj")
        .replace("attention.attention.key", "attention.k_proj")
        .replace("attention.attention.value", "attention.v_proj")
        .replace("attention.output.dense", "attention.o_proj")
        .replace("intermediate.dense", "mlp.fc1")
        .replace("output.dense", "mlp.fc2"): value
        for key, value in tensors.items()
    }
    expected = weight_folders.load(tmp_path).parameters
    safetensors.numpy.save_file(newer, str(tmp_path / "model.safetensors"))
    for key, value in weight_folders.load(tmp_path).parameters.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_pooler_is_left_out_with_a_word(tmp_path, capsys):
    write(tmp_path / "theirs", "vit_headless")
    arguments = ["weights", "import", str(tmp_path / "theirs"), "--output", str(tmp_path / "w")]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for name in ("bias", "weight"):
        assert f"Left out pooler.dense.{name}, part of a pooler that no head reads\n" in printed
    assert "Assumed pixels as of ViTImageProcessor" in printed
    assert not any("pooler" in key for key in weight_folders.load(tmp_path / "w").parameters)


def test_head_that_is_dropped_leaves_a_tower(tmp_path):
    write(tmp_path, "vit")
    weights = weight_folders.load(tmp_path, drop=[r"classifier\..*"])
    assert weights.config.image.classes is None
    assert weights.labels is None
    assert not any(key.startswith("image/head") for key in weights.parameters)


def test_deit_is_the_tower_of_lit(tmp_path):
    write(tmp_path, "deit_teacher")
    weights = weight_folders.load(tmp_path, drop=[r"\w+_classifier\..*"])
    recipe = config.tiny(config.load_recipe("lit_b16"))
    settings = inheritance.inherit(recipe, weights)
    model = two_tower.build(settings)
    start.start_from(model, weights, settings)
    assert (settings.image.distillation_token, settings.image.classes) == (True, None)
    token = two_tower.named_variables(model)["image/distillation_token"]
    np.testing.assert_array_equal(token, weights.parameters["image/distillation_token"])


def test_vit_is_a_teacher(tmp_path):
    tensors, _ = write(tmp_path, "vit")
    student = config.override(
        config.tiny(config.load_recipe("deit_s16")), ["image.classes=5", "image.size=32"]
    )
    weights = {"teacher": weight_folders.load(tmp_path)}
    teacher = frozen.make(weights, student, vocabulary=None, labels=None)["teacher"]
    levels = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    outputs = frozen.look(teacher, teacher.variables, {teacher.image: tf.constant(levels)})
    expected = reference.logits(tensors, levels / 127.5 - 1)["classifier"]
    np.testing.assert_allclose(outputs[two_tower.CLASSES], expected, atol=1e-5)


def test_settings_are_those_of_the_published_files():
    # google/vit-base-patch16-224 and facebook/deit-base-distilled-patch16-224 say little more.
    vit = hugging_face_vit.settings({"model_type": "vit"}, {"classifier": 1000})
    image = vit.image
    assert (image.width, image.depth, image.mlp_dim, image.num_heads) == (768, 12, 3072, 12)
    assert (image.pool, image.classes, image.block.activation) == ("tok", 1000, "gelu")
    assert (image.block.norm_epsilon, vit.text, vit.class_loss) == (1e-12, None, "softmax")
    heads = dict.fromkeys(reference.TEACHER_HEADS, 1000)
    deit = hugging_face_vit.settings({"model_type": "deit"}, heads)
    assert deit.image.distillation_token
    assert (deit.image.resize_side, deit.image.interpolation) == (256, "bicubic")
    multiple = {"model_type": "vit", "problem_type": "multi_label_classification"}
    assert hugging_face_vit.settings(multiple, {"classifier": 9}).class_loss == "sigmoid"
    # The pipeline there takes the sigmoid of a single logit.
    assert (
        hugging_face_vit.settings({"model_type": "vit"}, {"classifier": 1}).class_loss == "sigmoid"
    )


def test_class_names_reach_the_served_model_and_come_back(tmp_path):
    write(tmp_path / "theirs", "deit_teacher")
    weights = weight_folders.load(tmp_path / "theirs")
    names = ("tench", "crane (1)", "crane (2)", *NAMES[3:])
    assert weights.labels == LabelSet(names)
    weight_folders.save(tmp_path / "weights", weights)
    weights = weight_folders.load(tmp_path / "weights")
    start.export_weights(tmp_path / "model", weights)
    served = sources.load(tmp_path / "model")
    assert served.labels == weights.labels
    hugging_face_folders.save(tmp_path / "ours", served)
    described = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert described["id2label"] == {str(i): text for i, text in enumerate(names)}
    assert described["architectures"] == ["DeiTForImageClassificationWithTeacher"]


def test_names_that_transformers_makes_up_are_none(tmp_path):
    write(tmp_path, "vit", {"id2label": {str(i): f"LABEL_{i}" for i in range(5)}})
    assert weight_folders.load(tmp_path).labels is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act must be one of"),
        ({"num_channels": 1}, "must be square with 3 channels"),
        ({"patch_size": [4, 4]}, "must be square with 3 channels"),
        ({"problem_type": "regression"}, "problem_type must be single_label_classification or"),
        ({"id2label": {"0": "one"}}, "id2label of 1 classes, heads of {'classifier': 5}"),
        ({"id2label": {str(i): "x" for i in range(1, 6)}}, "from 0 to 4. Received: no id 0"),
        ({"hidden_size": 8}, r"must have the shape \(8, 3, 4, 4\). Received: \(16, 3, 4, 4\)"),
        ({"intermediate_size": 48}, r"intermediate.dense.weight must have the shape \(48, 16\)"),
        ({"image_size": 16}, "positions of 9 patches, image_size and patch_size of 16"),
        ({"num_hidden_layers": 1}, "Left over: vit.encoder.layer.1.attention"),
        ({"model_type": "deit"}, "Missing: embeddings.cls_token, embeddings.distillation_token"),
    ],
)
def test_folder_that_does_not_fit_itself_is_refused(changes, message, tmp_path):
    write(tmp_path, "vit", changes)
    with pytest.raises(ValueError, match=message):
        weight_folders.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "drop", "message"),
    [
        ("vit", "vit.layernorm.*", "Missing: vit.layernorm.bias, vit.layernorm.weight"),
        ("deit_teacher", "distillation_classifier.*", "none; classifier; cls_classifier and"),
    ],
)
def test_what_is_missing_is_named(name, drop, message, tmp_path):
    write(tmp_path, name)
    with pytest.raises(ValueError, match=message):
        weight_folders.load(tmp_path, drop=[drop])


def test_heads_of_two_kinds_are_refused(tmp_path):
    tensors, _ = write(tmp_path, "vit")
    tensors |= {f"{reference.TEACHER_HEADS[0]}.weight": np.zeros((5, 16), np.float32)}
    safetensors.numpy.save_file(tensors, str(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match="Received: classifier, cls_classifier"):
        weight_folders.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "gap"}, r"image.pool='gap' \(there: 'tok'\)"),
        ({"grids": (3, 6)}, r"image.grids=\(3, 6\) \(there: \(\)\)"),
        ({"num_registers": 2}, r"image.num_registers=2 \(there: 1\)"),
        ({"positions": "sincos2d"}, "image.positions='sincos2d'"),
        ({"projection": 8, "projection_tanh": True}, r"image.projection=8 \(there: None\)"),
        ({"block": BlockConfig(norm="rms", norm_bias=False)}, "image.block.norm='rms'"),
        ({"block": BlockConfig(parallel=True)}, r"image.block.parallel=True \(there: False\)"),
        ({"block": BlockConfig(qk_norm=True)}, r"image.block.qk_norm=True \(there: False\)"),
    ],
)
def test_tower_that_transformers_does_not_have_is_not_written(changes, message):
    image = ImageTowerConfig(**{"size": 12, "patch": 4, "pool": "tok", "classes": 5} | changes)
    with pytest.raises(ValueError, match=f"no place for what this image tower is. .*{message}"):
        hugging_face_vit.config_json(_trained(image))


def _trained(image, loss="softmax"):
    objectives = (ClassifyConfig(loss=loss),)
    return TrainConfig("x", 1, 1, image=image, text=None, objectives=objectives)


def test_what_only_training_does_is_no_reason_not_to_write():
    block = BlockConfig(dropout=0.1, stochastic_depth=0.1)
    image = ImageTowerConfig(pool="tok", classes=5, head_bias_init=-7.0, block=block)
    described = hugging_face_vit.config_json(_trained(image, "sigmoid"))
    assert described["problem_type"] == "multi_label_classification"
    assert described["id2label"] == {str(i): f"LABEL_{i}" for i in range(5)}
    with pytest.raises(ValueError, match=r"classes=1, image\.classes=5"):
        hugging_face_vit.config_json(_trained(image), LabelSet(("one",)))


def test_what_differs_there_is_said():
    image = ImageTowerConfig(pool="tok", classes=1)
    assert "sigmoid of one class" in hugging_face_vit.notes(_trained(image))[0]
    (note,) = hugging_face_vit.notes(_trained(dataclasses.replace(image, classes=9), "semantic"))
    assert "one softmax over all classes" in note
    headless = config.tiny(config.load_recipe("siglip_demo"))
    assert "add_pooling_layer=False" in hugging_face_vit.notes(headless)[0]
