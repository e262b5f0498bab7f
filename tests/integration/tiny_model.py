"""A `siglip_small` that learns something of scenes in seconds, and one with a frozen tower."""

from pathlib import Path

OVERRIDES = [
    "steps=150",
    "run.checkpoint_steps=50",
    "image.size=32",
    "image.depth=1",
    "image.width=48",
    "image.mlp_dim=96",
    "text.depth=1",
    "text.width=48",
    "text.mlp_dim=96",
    "global_batch_size=64",
    "optimizer.warmup_steps=5",
    "optimizer.learning_rate=0.003",
    "similarity.bias_init=-4.1",
    # Compiling takes longer than these steps.
    "run.jit_compile=false",
]
# It starts from weights, whose image tower stays as it is.
FROZEN = ['pretrained=["image/.*"]', 'optimizer.rates=[["image/.*", null], [".*", 1]]']


def write_weights(folder: Path, overrides: list[str]):
    """Writes new weights of the model with these overrides, and returns them."""
    from sigline.trainer import config
    from sigline.trainer.models import two_tower
    from sigline.trainer.weights import model_weights, weight_folders

    settings = config.override(config.load_recipe("siglip_small"), overrides)
    variables = two_tower.named_variables(two_tower.build(settings))
    weights = model_weights.Weights(settings, {name: v.numpy() for name, v in variables.items()})
    weight_folders.save(folder, weights)
    return weights
