"""The file that `tfx pipeline create --engine local --pipeline_path` is given.

`$SIGLINE_ENVIRONMENT` names the environment: a YAML file or the name of a packaged one.
"""

import os
import sys

# Run as a script, this folder would come first on the path and its modules shadow others.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(__file__)]

from sigline.pipeline import environment, local_run


def main() -> None:
    """Runs the pipeline; exits with 1 if the model was refused and 2 if the pipeline failed."""
    code = local_run.main(environment.active)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
