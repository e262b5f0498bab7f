"""Compiles the pipeline for Kubeflow Pipelines 2: `NAME.yaml` in the working directory.

`$SIGLINE_ENVIRONMENT` names the environment: a YAML file or the name of a packaged one.
`sigline kubeflow compile` does the same; TFX's own `--engine kubeflow` needs a Kubeflow that is no
more.
"""

import os
import sys

# Run as a script, this folder would come first on the path and its modules shadow others.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(__file__)]

from sigline.pipeline import environment
from sigline.pipeline.kubeflow import compiling


def main() -> None:
    """Compiles the pipeline; raises ValueError if the environment cannot run on Kubeflow."""
    active = environment.active()
    compiling.compile_pipeline(active, f"{active.pipeline_name}.yaml")


if __name__ == "__main__":
    main()
