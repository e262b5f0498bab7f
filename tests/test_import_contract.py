"""Who may import what: read from the sources, and proven in a fresh process."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"tfx", "apache_beam", "tensorflow", "keras", "tensorflow_text", "grpc", "kfp"}
TENSORFLOW = {"tensorflow", "keras", "tensorflow_text"}


# Files of components, besides `component.py`, that Beam's workers run, or that read files by Beam.
RUN_BY_BEAM = {
    "curate": ("transforms", "choice_transforms"),
    "embed": ("transforms",),
    "fetch": ("transforms",),
    "evaluate": ("transforms", "judge", "model_views", "report_subject", "tfma_results"),
    "index": ("transforms", "build", "saved_index", "search"),
    "ingest": (
        "transforms",
        "account_transforms",
        "counts_transforms",
        "examine_transforms",
        "group_transforms",
        "input_files",
        "report_transforms",
        "shard_transforms",
        "tag_transforms",
    ),
    "publish": ("remote",),
}


# Which heavy libraries the files that components share may import; the others import none.
SHARED = {
    "artifact_types": {"tfx"},
    "files": {"apache_beam"},
    "outputs": {"apache_beam"},
    "served_model": TENSORFLOW,
}


# Rooms of components that build on another one.
BUILDS_ON = {"fetch": "components.ingest"}
# Files that only give another file's names, under the name that users of earlier versions import.
KEPT = {
    "components/ingest/fetch_transforms.py": "components.fetch.transforms",
    "pipeline/run.py": "pipeline.local_run",
}


def _imports(path: Path) -> set[str]:
    """Returns everything that a file imports, at the top and inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def _allowed(path: Path) -> tuple[set[str], set[str]]:
    """Returns which heavy libraries and which parts of sigline a file may import."""
    part, *rest = path.relative_to(ROOT).parts
    if (kept := KEPT.get(path.relative_to(ROOT).as_posix())) is not None:
        return set(), {kept}
    if part == "schemas":
        return ({"tensorflow"} if path.name == "tf_example.py" else set()), {"schemas"}
    if part == "trainer":
        return TENSORFLOW, {"schemas", "trainer"}
    if part == "serving":
        return TENSORFLOW | {"grpc"}, {"schemas", "serving"}
    if part == "pipeline":
        return HEAVY, {"schemas", "trainer", "components", "serving", "pipeline"}
    if part == "sigline" and (rest[0] == "commands" or path.name in ("demo.py", "quiet.py")):
        return HEAVY, {
            "schemas",
            "trainer",
            "components",
            "serving",
            "pipeline",
            "commands",
            "demo",
        }
    if part == "sigline" and path.name == "cli.py":
        return set(), {"schemas", "commands", "trainer.training.preemption"}
    if part == "sigline":
        return set(), {"schemas"}
    assert part == "components", path
    if rest[0] == "shared":
        return SHARED.get(path.stem, set()), {"schemas"}
    light = {f"components.shared.{name}" for name in ("report_pages", "upright")}
    own = {"schemas", *light, f"components.{rest[0]}"}
    own |= {BUILDS_ON[rest[0]]} if rest[0] in BUILDS_ON else set()
    if path.name == "component.py":
        own |= {"components.shared.artifact_types", "trainer"}
        own |= {"serving"} if rest[0] == "check_serving" else set()
        return {"tfx", "apache_beam", "tensorflow"}, own
    if path.stem in RUN_BY_BEAM.get(rest[0], ()):
        by_beam = {f"components.shared.{name}" for name in ("files", "outputs", "served_model")}
        return {"apache_beam", *TENSORFLOW}, own | by_beam
    return set(), own


# The rooms of the trainer from the bottom up: each imports from those before it, and from itself.
ROOMS = (
    "config",
    "models",
    "losses",
    "inputs",
    "weights",
    "export",
    "objectives",
    "recipes",
    "training",
    "sources",
    "run",
    "run_file",
)


# What each room of serving imports from others.
SERVING = {
    "protocol": set(),
    "client": {"protocol"},
    "server": {"protocol"},
    "checks": {"protocol", "client", "server"},
    "search_page": {"client"},
}


FILES = sorted(
    path
    for folder in ("schemas", "trainer", "components", "serving", "pipeline", "sigline")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_only_what_its_place_allows(path):
    libraries, parts = _allowed(path)
    for name in _imports(path):
        top = name.split(".")[0]
        if top in HEAVY:
            assert top in libraries, f"{path} may not import {name}"
        if name.startswith("sigline.") and name != "sigline.__version__":
            inner = name.removeprefix("sigline.")
            if inner in ("quiet", "arguments") or inner.startswith("quiet."):
                continue
            fine = any(
                inner == p or inner.startswith(f"{p}.") or p.startswith(inner) for p in parts
            )
            assert fine, f"{path} may not import {name}"


def _rooms(path: Path) -> set[str]:
    """Returns the rooms of the trainer that a file imports from."""
    inner = {name.removeprefix("sigline.trainer.") for name in _imports(path)}
    return {name.split(".")[0] for name in inner} & set(ROOMS)


def test_rooms_of_the_trainer_are_all_there():
    entries = {path.stem for path in (ROOT / "trainer").iterdir() if path.name != "__pycache__"}
    assert entries - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_of_the_trainer_imports_from_one_above_it(room):
    folder = ROOT / "trainer" / room
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert paths
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    above = {str(path.relative_to(ROOT)): sorted(_rooms(path) - allowed) for path in paths}
    assert {name: rooms for name, rooms in above.items() if rooms} == {}


def test_public_paths_stay():
    """What READMEs, generated projects and users' recipes import."""
    code = """
from sigline.trainer import config
from sigline.trainer.config import ImageTowerConfig, RunConfig, TrainConfig, load_gate, load_recipe
from sigline.trainer.recipes import siglip_b16, siglip_demo
from sigline.components.fetch import transforms
from sigline.components.ingest import fetch_transforms
from sigline.pipeline import environment, local_run, run
from sigline.pipeline.run_fn import run_fn
from sigline.serving.client import AsyncClient, Client
assert siglip_demo.config() == load_recipe("siglip_demo") == config.load_recipe("siglip_demo")
assert load_gate("siglip_demo") == siglip_demo.gate()
assert fetch_transforms.Fetch is transforms.Fetch
assert run.main is local_run.main
assert callable(environment.load) and environment.VARIABLE
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_all_of_trainer_loads_neither_tfx_nor_beam():
    code = """
import pkgutil, importlib, sys
import sigline.trainer
for module in pkgutil.walk_packages(sigline.trainer.__path__, "sigline.trainer."):
    importlib.import_module(module.name)
loaded = {name.split(".")[0] for name in sys.modules} & {"tfx", "apache_beam", "grpc"}
assert not loaded, loaded
assert "sigline.trainer.training.loop" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("room", SERVING)
def test_room_of_serving_imports_only_from_those_it_may(room):
    prefix = "sigline.serving."
    imported = {
        name.removeprefix(prefix).split(".")[0]
        for path in (ROOT / "serving" / room).rglob("*.py")
        for name in _imports(path)
        if name.startswith(prefix)
    }
    assert imported <= SERVING[room] | {room}


def test_every_file_of_serving_is_in_a_room():
    folder = ROOT / "serving"
    assert {path.name for path in folder.glob("*.py")} == {"__init__.py"}
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert rooms == set(SERVING)


def test_file_called_transforms_has_one():
    names = r"PTransform|DoFn|CombineFn|ptransform_fn"
    for path in (ROOT / "components").rglob("*transforms.py"):
        if path.relative_to(ROOT).as_posix() in KEPT:
            continue
        assert re.search(rf"beam\.({names})", path.read_text()), path


def test_every_file_of_components_is_in_a_room():
    folder = ROOT / "components"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"__init__.py"}


def test_files_that_beam_runs_are_there():
    for folder, names in {**RUN_BY_BEAM, "shared": SHARED}.items():
        for name in names:
            assert (ROOT / "components" / folder / f"{name}.py").is_file(), (folder, name)
