"""What tests of the trainer share."""

import pytest


@pytest.fixture(scope="session")
def few_parameters() -> list[str]:
    """Overrides that leave a model with half its parameters.

    Half the time of a short run is what TensorFlow needs to trace each of them.
    """
    options = ("depth=1", "block.qkv_bias=false", "block.mlp_bias=false")
    towers = [f"{tower}.{option}" for tower in ("image", "text") for option in options]
    return ["image.pool=gap", *towers]
