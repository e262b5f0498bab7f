import pytest

from sigline.pipeline import checks
from sigline.pipeline.environment import Environment


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
