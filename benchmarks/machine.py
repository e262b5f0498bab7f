"""What the figures of a benchmark depend on, besides the code, and how they are kept."""

import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path


def describe() -> dict[str, object]:
    """Returns the date, the machine and the version of Python."""
    with open("/proc/cpuinfo") as handle:
        names = [line.split(":")[1].strip() for line in handle if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "processor": names[0] if names else platform.processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * pages / 2**30),
    }


def versions(*names: str) -> dict[str, str]:
    """Returns the versions of installed packages."""
    return {name: metadata.version(name) for name in names}


def write_results(folder: Path, name: str, results: dict, text: str) -> None:
    """Writes figures as JSON and the page about them as Markdown, and prints the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    print(text)
