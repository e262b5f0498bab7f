"""Overrides that make `siglip_small` learn something of scenes in seconds."""

OVERRIDES = [
    "steps=150",
    "checkpoint_steps=50",
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
    "loss.bias_init=-4.1",
]
