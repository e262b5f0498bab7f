"""Compiles the pipeline for Vertex AI: `NAME.json` in the working directory.

`$SIGLINE_ENVIRONMENT` names the environment: a YAML file or the name of a packaged one.
`sigline kubeflow compile --engine vertex` does the same.
"""

import os
import sys

# Run as a script, this folder would come first on the path and its modules shadow others.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(__file__)]

from sigline.pipeline import environment
from sigline.pipeline.kubeflow import compiling


def main() -> None:
    """Compiles the pipeline; raises ValueError if the environment cannot run on Vertex AI."""
    active = environment.active()
    compiling.compile_pipeline(active, f"{active.pipeline_name}.json", engine=compiling.VERTEX)


if __name__ == "__main__":
    main()
