"""The runner by the name that `local_runner.py` of projects made by earlier versions imports."""

from sigline.pipeline.local_run import main

__all__ = ["main"]
