"""AugReg's recipes: sizes, presets, and where they and the plain ViT begin."""

import math

import pytest

from sigline.trainer import config
from sigline.trainer.config import augmentation
from sigline.trainer.models import specs

# By hand: a plain ViT-B/16 with a class token has 86,566,888 parameters, and the layer before its
# head 768 * 768 + 768; the loss of C classes at bias b is ln(1 + e^-b) + (C - 1) ln(1 + e^b).
_RECIPES = {
    "augreg_ti16": ("light1", 16, 192, 7.907278),
    "augreg_s32": ("medium1", 32, 384, 7.907278),
    "augreg_s16": ("medium2", 16, 384, 7.907278),
    "augreg_b32": ("medium2", 32, 768, 7.907278),
    "augreg_b16": ("medium2", 16, 768, 7.907278),
    "augreg_l16": ("medium2", 16, 1024, 7.907278),
    "augreg_b16_i21k": ("light2", 16, 768, 10.991648),
}


@pytest.mark.parametrize("name", _RECIPES)
def test_recipe_has_the_published_preset_size_and_first_loss(name):
    preset, patch, width, first_loss = _RECIPES[name]
    recipe = config.load_recipe(name)
    image, data = recipe.image, recipe.data
    changes = {"mixup": data.mixup, "randaugment": data.randaugment}
    assert changes == augmentation.augreg(preset)
    assert (data.crop_min_area, data.flip) == (0.05, True)
    assert (image.patch, image.width, image.resized_side) == (patch, width, 256)
    assert image.classes is not None
    assert (image.projection, image.projection_tanh) == (
        (None, False) if image.pool == "gap" else (width, True)
    )
    assert recipe.class_loss == "sigmoid"
    assert recipe.optimizer.beta_2 == 0.999
    bias = image.head_bias_init
    loss = math.log1p(math.exp(-bias)) + (image.classes - 1) * math.log1p(math.exp(bias))
    assert loss == pytest.approx(first_loss, abs=5e-7)
    assert config.load_gate(name) == config.load_gate("vit_s16")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vit_s16", 21_974_632), ("augreg_b16", 86_566_888 + 768 * 768 + 768)],
)
def test_models_have_the_published_number_of_parameters(name, expected):
    found = specs.parameter_specs(config.load_recipe(name))
    assert sum(spec.shape.num_elements() for spec in found.values()) == expected
