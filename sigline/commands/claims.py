"""Claims of folders: what a run belongs to, so that another one does not go on in its place."""

import json
from pathlib import Path

from sigline.schemas import atomic

FILE = "run.json"


def check(output: Path, *, of: tuple[str, ...] | None = None, but: tuple[str, ...] = ()) -> None:
    """Refuses a folder that holds files of someone else where a run would write.

    Args:
        output: The folder; it need not exist.
        of: Names that the run writes; None for a folder that is the run's alone.
        but: Names that a run leaves there before it claims the folder.
    """
    if (output / FILE).is_file():
        return
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    others = [name for name in names if name not in but and not name.startswith(".tmp-")]
    if in_the_way := [name for name in others if of is None or name in of]:
        raise ValueError(
            f"{output / in_the_way[0]} is in the way: no run of sigline wrote it. Move it away, or "
            "name another place with --output."
        )


def claim(output: Path, identity: list[str]) -> None:
    """Writes beside the checkpoints what they belong to; refuses those of another run."""
    path, text = output / FILE, json.dumps(identity)
    if not path.exists():
        # Several workers may be here at once, all with the same text.
        atomic.write_file(path, text)
    if path.read_text() != text:
        raise ValueError(
            "output holds a run with another configuration, data or vocabulary; choose another "
            f"folder. Received: output={output}"
        )
