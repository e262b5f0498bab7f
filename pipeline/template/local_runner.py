"""What `tfx pipeline create --engine local --pipeline_path` is given.

`$SIGLINE_ENVIRONMENT` names another environment than `environments/local.yaml`.
"""

import os
import sys
from pathlib import Path

from sigline.pipeline import environment, local_run

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Runs the pipeline; exits with 1 if a gate refused, and with 2 if the pipeline failed."""
    os.chdir(FOLDER)
    chosen = os.environ.get(environment.VARIABLE, "environments/local.yaml")
    code = local_run.main(lambda: environment.load(chosen))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
