"""What tests of the trainer share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def few_parameters() -> list[str]:
    """Overrides that leave a model with half its parameters.

    Half the time of a short run is what TensorFlow needs to trace each of them.
    """
    options = ("depth=1", "block.qkv_bias=false", "block.mlp_bias=false")
    towers = [f"{tower}.{option}" for tower in ("image", "text") for option in options]
    return ["image.pool=gap", *towers]


@pytest.fixture(scope="session")
def cut_back() -> Callable[[Path, int, Path], Path]:
    """Returns a function that copies a run's checkpoints as an interruption leaves them.

    It takes their folder, the step whose checkpoint is the last one then, and the copy's folder.
    """

    def _cut_back(checkpoints: Path, step: int, copy: Path) -> Path:
        shutil.copytree(checkpoints, copy)
        for path in copy.glob("ckpt-*"):
            if int(path.stem.removeprefix("ckpt-")) > step:
                path.unlink()
        (copy / "checkpoint").write_text(f'model_checkpoint_path: "ckpt-{step}"')
        return copy

    return _cut_back
