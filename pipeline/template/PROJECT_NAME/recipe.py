"""PROJECT_TITLE's recipe: a SigLIP model for a few thousand pairs, on a CPU or one GPU.

Command: `sigline run --environment environments/local.yaml`.

Method: SigLIP (arXiv 2303.15343). Expected result: not measured yet; write yours here.
"""

import dataclasses
from pathlib import Path

import yaml

from sigline.schemas.gate import Gate
from sigline.trainer.config import TrainConfig
from sigline.trainer.recipes import siglip_small


def config() -> TrainConfig:
    """Returns the configuration."""
    return dataclasses.replace(siglip_small.config(), name="PROJECT_TITLE")


def gate() -> Gate:
    """Returns what a model must reach."""
    path = Path(__file__).parent / "thresholds.yaml"
    return Gate.from_dict(yaml.safe_load(path.read_text()))
