"""The page in a run's folder that links its reports: data report, model report, model card.

Reports are in artifacts, `ROOT/artifacts/NODE/OUTPUT/N`, which are written before the page.
"""

import html
from collections.abc import Sequence
from pathlib import Path

PAGE = "reports.html"
# Path from an artifact to the root of runs on one machine, and the metadata store that lies there.
_ROOT, _STORE = "../../../..", "metadata.sqlite"
_STYLE = "body { font: 15px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 50rem; }"


def address(artifact: str) -> str:
    """Returns the relative address of the page for a report in an artifact; empty without a root.

    Args:
        artifact: Folder of the artifact; on a cluster there is no page.
    """
    is_below_root = "://" not in artifact and Path(artifact, _ROOT, _STORE).is_file()
    return f"{_ROOT}/{PAGE}" if is_below_root else ""


def page(title: str, date: str, lines: Sequence[str], links: Sequence[tuple[str, str]]) -> str:
    """Returns the page.

    Args:
        title: Title of the run.
        date: Date of the run.
        lines: Sentences about the run.
        links: Text of each link, and its address relative to the run's folder.
    """
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    items = "".join(
        f'<li><a href="{html.escape(target, quote=True)}">{html.escape(name)}</a></li>'
        for name, target in links
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1><p>{html.escape(date)}</p>{paragraphs}"
        f"<ul>{items}</ul></body></html>\n"
    )
