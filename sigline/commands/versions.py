"""`sigline versions`, `verify`, `rollback` and `label`: manage the versions that are served."""

import argparse
import datetime
import json
import re
from pathlib import Path
from typing import Any

from sigline import arguments as checks
from sigline.components.publish import publishing
from sigline.schemas import signatures, versions


def add_parser(commands) -> None:
    """Adds the commands to those of the command line."""
    parser = commands.add_parser("versions", help="list the versions of a serving folder")
    parser.add_argument("base", type=Path, help="folder of version folders")
    parser.add_argument(
        "--restore", type=int, metavar="N", help="restore a withdrawn version first"
    )
    parser.add_argument(
        "--fast", action="store_true", help="read only the manifests, no other file"
    )
    parser.set_defaults(run=_versions)

    parser = commands.add_parser(
        "verify",
        help="check that versions are what was published",
        description="Reads all files. Ends with 1 if anything is changed, added or missing, "
        "or the signature is not of a key that is trusted, and names it.",
    )
    parser.add_argument(
        "version",
        type=Path,
        help="folder of a version, such as serving/3, or of all versions, such as serving",
    )
    parser.add_argument(
        "--verify-key", type=Path, help="PEM file of public keys, by one of which it must be signed"
    )
    parser.set_defaults(run=_verify)

    parser = commands.add_parser(
        "rollback",
        help="withdraw the newest versions of a serving folder",
        description="Servers then take up the version before. Nothing is removed.",
    )
    parser.add_argument("base", type=Path, help="folder of version folders")
    parser.add_argument(
        "--to", type=int, metavar="N", help="version to go back to; by default the one before"
    )
    parser.add_argument("--reason", default="", help="reason, which `sigline versions` shows")
    parser.set_defaults(run=_rollback)

    parser = commands.add_parser(
        "label",
        help="write the labels of versions into a model config of TF Serving",
        description="The labelled versions are served, and no others; --clear serves the newest.",
    )
    parser.add_argument("config", type=Path, help="model config to write, or change a model in")
    parser.add_argument("--base-path", required=True, type=Path, help="folder of version folders")
    parser.add_argument("--model-name", default="sigline")
    parser.add_argument("--served-path", help="path of that folder on the server, if it differs")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="labels",
        metavar="LABEL=VERSION",
        help="label of a version, such as stable=7; repeat it for others",
    )
    parser.add_argument(
        "--clear", action="store_true", help="remove the labels, to serve the newest version"
    )
    parser.set_defaults(run=_label)


def _versions(arguments: argparse.Namespace) -> int:
    checks.check_folder(arguments.base, "BASE")
    if arguments.restore is not None:
        print(f"Restored {publishing.restore(arguments.base, arguments.restore)}")
    directories = versions.directories(arguments.base)
    withdrawn = publishing.withdrawn(arguments.base)
    if not directories and not withdrawn:
        raise ValueError(f"BASE must hold versions, such as 1. Received: BASE {arguments.base}")
    print(f"{'version':>7}  {'published':<16}  {'MiB':>8}  {'files':<9}  {'model':<12}  recipe")
    for number, path in directories.items():
        print(_line(number, path, _files_state(path, fast=arguments.fast)))
    for item in withdrawn:
        print(_line(item.version, item.path, "withdrawn") + f"  {item.time}: {item.reason}")
    return 0


def _files_state(path: Path, *, fast: bool) -> str:
    if fast or not (path / versions.MANIFEST).is_file():
        return "unchecked"
    return "intact" if versions.verify(path) else "DAMAGED"


def _verify(arguments: argparse.Namespace) -> int:
    checks.check_folder(arguments.version, "VERSION")
    checks.check_file(arguments.verify_key, "--verify-key")
    verifier = None
    if arguments.verify_key is not None:
        from sigline.schemas import signing

        verifier = signing.Verifier(arguments.verify_key)
    folders = [arguments.version]
    # Numbered folders inside a version must not be taken for versions.
    if not any((arguments.version / x).exists() for x in (versions.MANIFEST, "saved_model.pb")):
        folders = list(versions.directories(arguments.version).values()) or folders
    signed = ", signed by a key that is trusted" if verifier is not None else ""
    is_damaged = False
    for folder in folders:
        problems = versions.problems(folder)
        if verifier is not None and (reason := _why_not_signed(verifier, folder)):
            problems.append(reason)
        for problem in problems:
            print(problem)
        if problems:
            print(f"{folder} is not what was published.")
            is_damaged = True
        else:
            print(f"{folder} is what was published{signed}.")
    return 1 if is_damaged else 0


def _why_not_signed(verifier: Any, folder: Path) -> str:
    try:
        verifier.check(folder)
    except ValueError as error:
        return str(error)
    return ""


def _line(number: int, path: Path, state: str) -> str:
    extra = path / signatures.ASSETS_DIR / signatures.METADATA_FILE
    metadata = json.loads(extra.read_text()) if extra.is_file() else {}
    size = sum(x.stat().st_size for x in path.rglob("*") if x.is_file()) / 2**20
    published = datetime.datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    digest = metadata.get("model_digest", "")[:12]
    return (
        f"{number:>7}  {published:<16}  {size:>8.1f}  {state:<9}  {digest:<12}  "
        f"{metadata.get('recipe', '')}"
    )


def _rollback(arguments: argparse.Namespace) -> int:
    checks.check_folder(arguments.base, "BASE")
    withdrawn = publishing.rollback(arguments.base, to=arguments.to, reason=arguments.reason)
    newest = max(versions.directories(arguments.base))
    if not withdrawn:
        print(f"Version {newest} is the newest already")
        return 0
    print(f"Withdrew {', '.join(map(str, withdrawn))}; the newest version is {newest}")
    return 0


def _label(arguments: argparse.Namespace) -> int:
    from sigline.serving.server import model_config

    labels = {}
    for assignment in arguments.labels:
        label, _, number = assignment.partition("=")
        if not number.isdigit():
            raise ValueError(f"--set must be LABEL=VERSION. Received: --set {assignment}")
        labels[label] = int(number)
    if bool(labels) == arguments.clear:
        received = "both" if labels else "neither"
        raise ValueError(f"Give either --set LABEL=VERSION or --clear. Received: {received}")
    directories = versions.directories(arguments.base_path)
    if missing := sorted({*labels.values()} - set(directories)):
        raise ValueError(
            f"Labels must name versions that are there. Received: {', '.join(map(str, missing))}, "
            f"versions={sorted(directories)}"
        )
    policy = model_config.VersionPolicy()
    if labels:
        policy = model_config.VersionPolicy(None, tuple(sorted({*labels.values()})))
    model = model_config.ModelConfig(
        arguments.model_name,
        arguments.served_path or str(arguments.base_path.resolve()),
        policy,
        labels,
    )
    _check_comments(arguments.config)
    model_config.replace(arguments.config, model)
    words = ", ".join(f"{label} is {number}" for label, number in sorted(labels.items()))
    print(f"Wrote {arguments.config}: {words or 'the newest version, without labels'}")
    return 0


def _check_comments(config: Path) -> None:
    """Checks that a config has no comments, which parsing and writing it would lose."""
    text = config.read_text() if config.is_file() else ""
    bare = re.sub(r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"", "", text)
    if "#" in bare:
        raise ValueError(
            "config must hold no comments, which would be lost: remove them, or write the labels "
            f"into it by hand. Received: {config}"
        )
