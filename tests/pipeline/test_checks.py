import pytest

from sigline.pipeline import checks
from sigline.pipeline.environment import Environment
from sigline.trainer import config


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"root": "/data/pairs"}, "root must not lie in input_base"),
        ({"root": "/data/pairs/run"}, "root must not lie in input_base"),
        ({"root": "/run", "serving_dir": "/data/pairs/serving"}, "serving_dir must not lie in"),
        (
            {"root": "/run", "index_dir": "/data/pairs/index"},
            "index_dir must not lie in input_base",
        ),
    ],
)
def test_run_that_would_write_below_its_input_is_refused(folders, message):
    environment = Environment(
        pipeline_name="x", input_base="/data/pairs", recipe="siglip_demo", **folders
    )
    with pytest.raises(ValueError, match=message):
        checks.check_folders(environment)


@pytest.mark.parametrize("root", ["/data", "/data/pairs-run", "/run"])
def test_run_that_writes_beside_its_input_is_allowed(root):
    checks.check_folders(
        Environment(pipeline_name="x", input_base="/data/pairs", recipe="siglip_demo", root=root)
    )


def test_input_without_the_tree_that_a_recipe_learns_is_refused(tmp_path):
    recipe = config.load_recipe("semantic_21k_b16")
    with pytest.raises(ValueError, match=r"needs a tree of the classes.*Received: no label set"):
        checks.check_classes(recipe, tmp_path)
    path = tmp_path / "classes.json"
    path.write_text('{"names": ["a", "b"], "parents": [1, 0]}')
    with pytest.raises(ValueError, match=r"classes.json must be a label set: .*in a circle"):
        checks.check_classes(recipe, tmp_path)
    path.write_text('{"names": ["a", "b"], "parents": [-1, 0]}')
    checks.check_classes(recipe, tmp_path)
    path.unlink()
    checks.check_classes(config.load_recipe("vit_s16"), tmp_path)
