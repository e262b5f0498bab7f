"""What the figures of a benchmark depend on, besides the code."""

import os
import platform
import time
from importlib import metadata


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
