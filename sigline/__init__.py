"""Sigline trains, gates and ships image-text models on TensorFlow and TPUs.

The package's parts live in top-level folders of the repository (`schemas/`, `trainer/`,
`components/`, `serving/`, `pipeline/`). In a wheel they are sub-packages of `sigline` already; in a
checkout this module adds the repository's root to the package's path.
"""

from pathlib import Path

__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "setup.py").is_file() and (_ROOT / "trainer").is_dir():
    __path__.append(str(_ROOT))
