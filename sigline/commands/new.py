"""`sigline new`: a repository of one's own, with data, recipe, thresholds, runners and CI."""

import argparse
import keyword
from pathlib import Path

import sigline.pipeline

TEMPLATE = Path(sigline.pipeline.__file__).parent / "template"
# In the template's texts and paths: the name as Python writes it, and as everyone else does.
_NAME, _TITLE = "PROJECT_NAME", "PROJECT_TITLE"
_DOT = "dot_"


def add_parser(commands) -> None:
    """Adds the command."""
    parser = commands.add_parser("new", help="make the repository of a project of your own")
    parser.add_argument("name", help="a Python name, which is the folder's too")
    parser.add_argument("--into", type=Path, default=Path("."), help="folder to make it in")
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
        ValueError: If it is no name for a package, or such a folder is there.
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
            "name must be of a folder that is not there yet; choose another, or another --into. "
            f"Received: {folder}"
        )
    # As Kubeflow and package indexes want it.
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
