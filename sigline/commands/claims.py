"""Claims of output folders: they record a run's identity, so that no other run resumes there."""

import json
from pathlib import Path

from sigline.schemas import atomic

FILE = "run.json"


def check(
    output: Path, *, written: tuple[str, ...] | None = None, ignored: tuple[str, ...] = ()
) -> None:
    """Checks that a folder without a claim holds no files that a run would overwrite.

    Args:
        output: The folder; it need not exist.
        written: Names that the run writes; None if the whole folder belongs to the run.
        ignored: Names that a run may leave there before it claims the folder.

    Raises:
        ValueError: If there is such a file.
    """
    if (output / FILE).is_file():
        return
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    others = [name for name in names if name not in ignored and not name.startswith(".tmp-")]
    if in_the_way := [name for name in others if written is None or name in written]:
        raise ValueError(
            f"{output / in_the_way[0]} is in the way: no run of sigline wrote it. Move it away, or "
            "name another place with --output."
        )


def claim(output: Path, identity: list[str]) -> None:
    """Writes a run's identity into its output folder.

    Raises:
        ValueError: If the folder is claimed by another run.
    """
    path, text = output / FILE, json.dumps(identity)
    if not path.exists():
        # Several workers may write at the same time, but all write the same text.
        atomic.write_file(path, text)
    if path.read_text() != text:
        raise ValueError(
            "output holds a run with another configuration, data or vocabulary; choose another "
            f"folder. Received: output={output}"
        )
