"""Maps the top-level folders onto the one importable package, `sigline`."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
FOLDERS = ("schemas", "trainer", "components", "serving", "pipeline")


def _package_dir() -> dict[str, str]:
    found = {"sigline": "sigline", "sigline.commands": "sigline/commands"}
    for folder in FOLDERS:
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            relative = init.parent.relative_to(ROOT)
            found[".".join(("sigline", *relative.parts))] = relative.as_posix()
    return found


packages = _package_dir()
setup(
    packages=sorted(packages),
    package_dir=packages,
    package_data={
        "sigline.schemas": ["*.pbtxt"],
        "sigline.components.shared": ["*.jinja"],
        "sigline.components.evaluate": ["report.css", "*.jinja"],
        "sigline.components.validate": ["report.css", "*.jinja"],
        "sigline.pipeline": [
            "environments/*.yaml",
            "template/*",
            "template/*/*",
            "template/*/*/*",
        ],
        "sigline.serving.search_page": ["page/*"],
    },
)
