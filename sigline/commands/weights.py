"""`sigline weights`: imports weights of other libraries, and exports weights for them."""

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
        "--drop", action="append", default=[], metavar="REGEX", help="tensors to leave out"
    )
    bring.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="settings that the source does not hold, such as image.size=256 or text.pool=gap",
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
    for item in weights.left_out:
        print(f"Left out {item}")
    for item in weights.assumed:
        print(f"Assumed {item}")
    if weights.assumed:
        print("The source does not hold these settings; set others by --set KEY=VALUE.")
    return 0


def _export_weights(arguments: argparse.Namespace) -> int:
    source = arguments.source
    # A checkpoint is a prefix of file names, not a file.
    if not source.with_name(f"{source.name}.index").is_file():
        checks.check_exists(source, "SOURCE")
    checks.check_absent(arguments.output, "--output")
    quiet.import_tensorflow()
    from sigline.trainer import sources
    from sigline.trainer.weights import hugging_face_folders

    weights = sources.load(source)
    notes = hugging_face_folders.save(arguments.output, weights)
    print(f"Wrote {arguments.output}")
    for note in notes:
        print(f"Note: {note}")
    return 0
