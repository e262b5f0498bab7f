"""The recipe and the environments can be read."""

from pathlib import Path

import pytest

from sigline.pipeline import environment
from sigline.trainer import config

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "environments").glob("*.yaml")), ids=str)
def test_environments_name_a_recipe_with_a_gate(path):
    recipe = environment.load(path).recipe
    assert config.load_recipe(recipe).steps > 0
    assert config.load_gate(recipe)
