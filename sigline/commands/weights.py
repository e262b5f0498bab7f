"""`sigline weights`: weights of others in and out."""

import argparse
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet


def add_parser(commands) -> None:
    """Adds the command."""
    weights = commands.add_parser("weights", help="bring weights in and out")
    weights = weights.add_subparsers(required=True)
    bring = weights.add_parser("import", help="read Hugging Face folders and big_vision .npz")
    bring.add_argument("source", type=Path, help="folder with safetensors, or .npz file")
    bring.add_argument("--output", required=True, type=Path, help="folder of weights to write")
    bring.add_argument(
        "--vocabulary", type=Path, help="SentencePiece model, if the source has none"
    )
    bring.add_argument(
        "--drop", action="append", default=[], metavar="REGEX", help="tensors that are not wanted"
    )
    bring.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="what the source does not tell, such as image.size=256 or text.pool=gap",
    )
    bring.set_defaults(run=_import_weights)
    send = weights.add_parser("export", help="write weights for Hugging Face transformers")
    send.add_argument(
        "source", type=Path, help="weights, a run's folder or checkpoint, or a published version"
    )
    send.add_argument("--output", required=True, type=Path, help="folder to write")
    send.set_defaults(run=_export_weights)


def _import_weights(arguments: argparse.Namespace) -> int:
    checks.check_weights(arguments.source, "SOURCE")
    checks.check_file(arguments.vocabulary, "--vocabulary")
    checks.check_absent(arguments.output, "--output")
    quiet.import_tensorflow()
    from sigline.trainer.weights import inheritance, weight_folders

    weights = weight_folders.load(
        arguments.source, drop=arguments.drop, assignments=arguments.assignments
    )
    if arguments.vocabulary is not None:
        weights = inheritance.with_vocabulary(weights, arguments.vocabulary.read_bytes())
    weight_folders.save(arguments.output, weights)
    count = sum(value.size for value in weights.parameters.values())
    towers = sorted({name.split("/")[0] for name in weights.parameters if "/" in name})
    words = "with" if weights.vocabulary is not None else "without"
    print(
        f"Wrote {count:,} parameters ({', '.join(towers)}) {words} vocabulary to {arguments.output}"
    )
    for item in weights.assumed:
        print(f"Assumed {item}")
    if weights.assumed:
        print("The source does not tell these; --set KEY=VALUE says otherwise.")
    return 0


def _export_weights(arguments: argparse.Namespace) -> int:
    source = arguments.source
    # A checkpoint is named without the endings of its files.
    if not source.with_name(f"{source.name}.index").is_file():
        checks.check_there(source, "SOURCE")
    checks.check_absent(arguments.output, "--output")
    quiet.import_tensorflow()
    from sigline.trainer import sources
    from sigline.trainer.weights import weight_folders

    weights = sources.load(source)
    notes = weight_folders.save_hugging_face(arguments.output, weights)
    print(f"Wrote {arguments.output}")
    for note in notes:
        print(f"Note: {note}")
    return 0
