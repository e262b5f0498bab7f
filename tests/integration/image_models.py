"""Pictures with labels and without captions, and pipelines of models of images alone."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from sigline.components.scenes import generate

SIZES = [
    "steps=150",
    "run.checkpoint_steps=50",
    "run.jit_compile=false",
    "global_batch_size=64",
    "image.classes=36",
    "image.size=32",
    "image.patch=8",
    "image.depth=1",
    "image.width=48",
    "image.mlp_dim=96",
    "image.num_heads=2",
    "optimizer.warmup_steps=5",
    "optimizer.learning_rate=0.003",
    "data.crop_min_area=0.7",
    "data.randaugment=none",
    "data.shuffle_records=1000",
]


def write_pictures(folder: Path, *, count: int, seed: int) -> None:
    """Writes scenes without their captions, each with its label."""
    scenes = folder.with_name(f"{folder.name}-with-captions")
    generate.write_scenes(scenes, count=count, seed=seed)
    folder.mkdir(parents=True)
    for path in scenes.rglob("*"):
        target = folder / path.relative_to(scenes)
        if path.is_dir():
            target.mkdir()
        elif path.suffix == ".tar":
            _without_captions(path, target)
        else:
            shutil.copy(path, target)
    shutil.rmtree(scenes)


def _without_captions(source: Path, target: Path) -> None:
    with tarfile.open(source) as read, tarfile.open(target, "w") as written:
        for member in read:
            content = read.extractfile(member)
            assert content is not None
            if member.name.endswith(".txt"):
                continue
            data = content.read()
            if member.name.endswith(".json"):
                fields = json.loads(data)
                data = json.dumps({k: v for k, v in fields.items() if "caption" not in k}).encode()
                member.size = len(data)
            written.addfile(member, io.BytesIO(data))


def environment(folder: Path, recipe: str, **changes: Any) -> dict[str, Any]:
    """Returns an environment of a small model of images alone."""
    values = {
        "pipeline_name": recipe.replace("_", "-"),
        "root": str(folder / "root"),
        "input_base": str(folder / "data"),
        "recipe": recipe,
        "overrides": SIZES,
        "ingest": {"eval_share": 0.2, "captions": "optional"},
    }
    return values | changes
