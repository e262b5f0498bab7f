"""Loads torch, where it is installed, before TensorFlow: behind it, its compiler does not load."""

import importlib.util

if importlib.util.find_spec("torch") is not None:
    import torch._dynamo  # noqa: F401  # pyright: ignore[reportMissingImports]
