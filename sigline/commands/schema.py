"""`sigline data schema`: infers a schema from statistics."""

import argparse
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet


def add_parser(data) -> None:
    """Adds the command."""
    schema = data.add_parser("schema", help="infer a schema for the pipeline from statistics")
    schema.add_argument(
        "--statistics", required=True, type=Path, help="StatisticsGen's folder of the splits"
    )
    schema.add_argument("--output", required=True, type=Path, help="text file to write")
    schema.set_defaults(run=_schema)


def _schema(arguments: argparse.Namespace) -> int:
    from sigline.schemas import artifacts

    paths = sorted(arguments.statistics.glob("Split-*/FeatureStats.pb"))
    if not paths:
        raise ValueError(
            "--statistics must be a folder with Split-NAME/FeatureStats.pb. "
            f"Received: {arguments.statistics}"
        )
    checks.check_absent(arguments.output, "--output")
    quiet.import_tfx()
    import tensorflow_data_validation as tfdv

    from sigline.components.validate import infer

    curated = tfdv.load_schema_text(str(artifacts.SCHEMA))
    schema = infer.infer(curated, [tfdv.load_stats_binary(str(path)) for path in paths])
    tfdv.write_schema_text(schema, str(arguments.output))
    print(f"Review {arguments.output}, and name it as `schema` in the environment.")
    return 0
