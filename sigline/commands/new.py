"""`sigline new`: creates a project's repository, with data, recipe, thresholds, runners and CI."""

import argparse
import keyword
from pathlib import Path

import sigline.pipeline

TEMPLATE = Path(sigline.pipeline.__file__).parent / "template"
# Placeholders in the template's texts and paths: the name with underscores, and with hyphens.
_NAME, _TITLE = "PROJECT_NAME", "PROJECT_TITLE"
# Prefix of names in the template that stands for a leading dot.
_DOT = "dot_"


def add_parser(commands) -> None:
    """Adds the command."""
    parser = commands.add_parser("new", help="create the repository of a new project")
    parser.add_argument("name", help="name of the Python package and of its folder")
    parser.add_argument("--into", type=Path, default=Path("."), help="folder to create it in")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    folder = make(arguments.name, arguments.into)
    print(f"{folder}: go on with {folder / 'README.md'}")
    return 0


def make(name: str, into: Path) -> Path:
    """Writes a project and returns its folder.

    Args:
        name: Its name, such as `my_project`.
        into: The folder that it is made in.

    Raises:
        ValueError: If it is not a valid name of a package, or the folder exists.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ValueError(
            "name must be lower-case Python, such as my_project; --into says where. "
            f"Received: {name!r}"
        )
    if name == "sigline" or not name[0].isalpha():
        raise ValueError(f"name must begin with a letter and not be sigline. Received: {name!r}")
    folder = into / name
    if folder.exists():
        raise ValueError(
            "name must be that of a new folder; choose another name, or another --into. "
            f"Received: {folder}"
        )
    # Kubeflow and package indexes use hyphens.
    title = name.replace("_", "-").strip("-")
    for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file()):
        if "__pycache__" in source.parts:
            continue
        parts = [
            f".{part.removeprefix(_DOT)}" if part.startswith(_DOT) else part.replace(_NAME, name)
            for part in source.relative_to(TEMPLATE).parts
        ]
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text().replace(_NAME, name).replace(_TITLE, title))
    (folder / name / "__init__.py").write_text(f'"""{title}: the recipe."""\n')
    return folder
