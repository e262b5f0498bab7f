"""Imports of a small pipeline's tasks, so that a fork server imports them only once.

What is imported stays: the garbage collector is told to leave it out, in all forks, which otherwise
look through all of it again and again, and write to memory that they could share.
"""

import gc

from sigline.pipeline import local_run  # noqa: F401
from sigline.pipeline.kubeflow import run_task  # noqa: F401

# The infra check's processes are forks in their turn.
from sigline.serving.checks import preloaded  # noqa: F401

# What evaluation writes its results with; TFX must be imported before it.
import tensorflow_model_analysis  # noqa: F401  # isort: skip

gc.collect()
gc.freeze()
