"""Reports as pages of HTML: each is one file that needs nothing else.

A report has its own `report.html.jinja` and `report.css`. What all reports share is beside this
module: `page.html.jinja`, the page around them, and `parts.html.jinja`, links and quoted texts.
"""

from pathlib import Path

import jinja2

_SHARED = Path(__file__).parent


def template(folder: Path) -> jinja2.Template:
    """Returns the template of the report in a folder.

    It escapes every text that is not `Markup`, and raises `UndefinedError` for a name that it
    gets no value for.

    Args:
        folder: Holds `report.html.jinja` and `report.css`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.jinja")
