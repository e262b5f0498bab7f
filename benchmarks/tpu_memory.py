"""Claim: the published SigLIP and SigLiT batch sizes fit the TPUs that the paper names.

And ViT-22B, whose state every chip would have to hold, does not.

Compiles sigline's real training step for TPU topologies ahead of time, with no TPU: the step is
lowered to StableHLO in the environment of `[tpu]` (`tpu_lower.py`) and compiled by libtpu in
another one (`tpu_compiler/`), whose own accounting of memory is printed. `make tpu-check` makes
both and runs this. Nothing is executed, so nothing here is a time.

Towers of full depth compile for minutes. Rows marked "extrapolated" are the line through two
shallow compiles; where a row was compiled in full as well, the table says how far the line is off.
"""

import argparse
import dataclasses
import hashlib
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from sigline.trainer import config
from sigline.trainer.config import ImageTowerConfig, TextTowerConfig, TrainConfig
from sigline.trainer.models import sizes as variants

ROOT = Path(__file__).parent
# What the compiler itself states as the limit of a v4 chip.
V4_HBM_GIB = 30.75
SHALLOW = (2, 4)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: What is compiled.
        topology: For which chips.
        global_batch_size: Over all chips.
        form: `live`, `precomputed`, `live-dense`, `precomputed-dense`, `loss-ring` or `loss-dense`.
        settings: The configuration; None for a loss alone.
        depths: Depths of the towers to compile.
        depth: Depth that the row speaks of; extrapolated if it is not in `depths`.
        dim: Width of the embeddings of a loss alone.
    """

    name: str
    topology: str
    global_batch_size: int
    form: str
    settings: TrainConfig | None = None
    depths: tuple[int, ...] = (0,)
    depth: int = 0
    dim: int = 0

    @property
    def num_chips(self) -> int:
        """Chips of the topology."""
        x, y, z = (int(side) for side in self.topology.split(":")[1].split("x"))
        return x * y * z


def rows() -> list[Row]:
    """Returns what is compiled."""
    base = config.load_recipe("siglip_b16")
    base = dataclasses.replace(
        base,
        precision="bfloat16",
        rematerialize=True,
        optimizer=dataclasses.replace(base.optimizer, first_moment_dtype="bfloat16"),
    )
    sizes = variants.sizes("L")
    large = dataclasses.replace(
        base,
        image=ImageTowerConfig(**sizes),
        text=TextTowerConfig(**sizes),
        optimizer=dataclasses.replace(base.optimizer, rates=(("image/.*", None), (".*", 1.0))),
    )
    lit = (*SHALLOW, 24)
    in_parts = dataclasses.replace(large, microbatches=4)
    # Embeddings of a ViT-g-opt are 1536 wide; of its tower nothing else is needed.
    wide = dataclasses.replace(large, image=dataclasses.replace(large.image, width=1536))
    losses = [
        Row(f"loss alone, {form}", topology, batch, f"loss-{form}", dim=dim)
        for topology, batch, dim in (
            ("v4:2x2x1", 20_480, 1024),
            ("v4:2x2x1", 32_768, 768),
            ("v4:2x2x2", 65_536, 768),
            ("v4:2x2x4", 131_072, 768),
        )
        for form in ("ring", "dense")
    ]
    largest = config.load_recipe("vit_22b")
    smaller = config.load_recipe("vit_parallel_so400m14")
    return [
        *losses,
        Row("Large LiT, precomputed images", "v4:2x2x1", 20_480, "precomputed", wide, lit, 24),
        Row("the same, 2 layers, ring", "v4:2x2x1", 20_480, "precomputed", wide, (2,), 2),
        Row("the same, 2 layers, dense", "v4:2x2x1", 20_480, "precomputed-dense", wide, (2,), 2),
        Row("Base SigLIP", "v4:2x2x4", 32_768, "live", base, SHALLOW, 12),
        Row("Base SigLIP", "v4:2x2x1", 4096, "live", base, (*SHALLOW, 12), 12),
        # Which of the towers sets the peak depends on the depth, so no line would do.
        Row("Large LiT, frozen L/16 live", "v4:2x2x1", 20_480, "live", large, (24,), 24),
        Row("the same, 4 microbatches", "v4:2x2x1", 20_480, "live", in_parts, (24,), 24),
        Row("Base SigLIP", "v4:2x2x2", 32_768, "live", base, SHALLOW, 12),
        # As many images a chip as the authors have, who keep a part of the model on each.
        Row("ViT-22B of 1 layer", "v4:2x2x1", 256, "live", largest, (1,), 1),
        Row("ViT-22B of 2 layers", "v4:2x2x1", 256, "live", largest, (2,), 2),
        Row("ViT-22B, from 1 and 2 layers", "v4:2x2x1", 256, "live", largest, (1, 2), 48),
        Row("ViT So400m/14 of its blocks", "v4:2x2x1", 4096, "live", smaller, (*SHALLOW, 27), 27),
    ]


def at_depth(settings: TrainConfig, depth: int, global_batch_size: int) -> TrainConfig:
    """Returns a configuration with towers of another depth, and another batch."""
    text = settings.text
    return dataclasses.replace(
        settings,
        global_batch_size=global_batch_size,
        image=dataclasses.replace(settings.image, depth=depth),
        text=None if text is None else dataclasses.replace(text, depth=depth),
    )


def request(row: Row, depth: int) -> dict:
    """Returns what `tpu_lower.py` reads."""
    if row.settings is None:
        batch = row.global_batch_size // row.num_chips
        form = row.form.removeprefix("loss-")
        loss = {"batch": batch, "dim": row.dim, "num_replicas": row.num_chips, "form": form}
        return {"loss": loss}
    return {
        "config": json.loads(at_depth(row.settings, depth, row.global_batch_size).to_json()),
        "num_replicas": row.num_chips,
        "form": row.form,
    }


def compile_one(asked: dict, topology: str, arguments: argparse.Namespace) -> dict:
    """Lowers and compiles one program; what is in the work folder already is not done again."""
    text = json.dumps(asked, sort_keys=True)
    key = hashlib.sha256((text + topology + arguments.source).encode()).hexdigest()[:16]
    folder = arguments.work / key
    result = folder / "result.json"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "request.json").write_text(text)
        program = folder / "program.mlir"
        _run(
            arguments.trainer_python,
            ROOT / "tpu_lower.py",
            folder / "request.json",
            "--output",
            program,
        )
        _run(
            arguments.compiler_python,
            ROOT / "tpu_compiler" / "compile.py",
            program,
            "--topology",
            topology,
            "--output",
            result,
        )
    return json.loads(result.read_text()) | json.loads((folder / "program.json").read_text())


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(
        [
            ROOT / "tpu_lower.py",
            ROOT / "tpu_compiler/compile.py",
            ROOT / "tpu_compiler/uv.lock",
            ROOT.parent / "uv.lock",
            *(ROOT.parent / "trainer").rglob("*.py"),
        ]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(*command: object) -> None:
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed:\n{done.stderr[-3000:]}")


def line_through(found: dict[int, dict], depth: int, field: str) -> float:
    """Returns a figure at `depth` on the line through the two shallowest compiles."""
    low, high = sorted(found)[:2]
    slope = (found[high][field] - found[low][field]) / (high - low)
    return found[low][field] + slope * (depth - low)


def describe(row: Row, found: dict[int, dict]) -> dict:
    """Returns the row's entry in the results."""
    failed = [str(f["out_of_memory"]) for f in found.values() if "out_of_memory" in f]
    entry: dict = {
        "name": row.name,
        "topology": row.topology,
        "global_batch_size": row.global_batch_size,
        "batch_per_chip": row.global_batch_size // row.num_chips,
        "form": row.form,
        "depth": row.depth,
        "compiled": {str(depth): value for depth, value in found.items()},
    }
    if failed:
        return entry | {"out_of_memory": failed[0]}
    full = found.get(row.depth)
    fields = ("peak_gib", "temp_gib", "argument_gib")
    if full is None:
        entry["extrapolated"] = True
        entry |= {field: line_through(found, row.depth, field) for field in fields}
    else:
        entry |= {field: full[field] for field in fields}
        if len(found) > 2:
            entry["peak_gib_by_line"] = line_through(found, row.depth, "peak_gib")
    entry["flops"] = line_through(found, row.depth, "flops") if full is None else full["flops"]
    entry["collectives"] = found[max(found)]["collectives"]
    entry["fits"] = entry["peak_gib"] <= V4_HBM_GIB
    return entry


def write_table(result: dict, path: Path) -> None:
    """Writes a Markdown table."""
    about = result["environment"]
    lines = [
        "# Memory of the training step on a TPU v4, by the compiler's accounting",
        "",
        f"{about['date']}; lowered by TensorFlow {about['tensorflow']}, compiled by jax "
        f"{about['jax']} with libtpu {about['libtpu']} for topologies that were not there. Nothing "
        "was executed. Command: `make tpu-check`.",
        "",
        "All figures are of one chip. Towers: bfloat16 with float32 norms, softmax and loss, every "
        "block rematerialised, first moments in bfloat16. Peak is the compiler's, of "
        f"{V4_HBM_GIB} GiB; temp is what it reserves for temporaries. FLOPs count the body of a "
        "loop once. `~` marks figures on the line through compiles with "
        f"{' and '.join(map(str, SHALLOW))} layers a tower, or as many as the row says. "
        "`tpu_memory.json` names the code behind each row by its digest.",
        "",
        "| what | chips | global batch | per chip | peak GiB | temp GiB | FLOPs | collectives "
        "| fits |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in result["rows"]:
        head = (
            f"| {row['name']} | {row['topology']} | {row['global_batch_size']:,} | "
            f"{row['batch_per_chip']:,} | "
        )
        if "out_of_memory" in row:
            lines.append(head + "out of memory | | | | no |")
            continue
        sign = "~" if row.get("extrapolated") else ""
        collectives = ", ".join(f"{n} {name}" for name, n in row["collectives"].items() if n)
        fits = "yes" if row["fits"] else f"does not fit: {row['peak_gib']:.0f} GiB"
        lines.append(
            head + f"{sign}{row['peak_gib']:.2f} | {sign}{row['temp_gib']:.2f} | "
            f"{sign}{row['flops']:.2e} | {collectives} | {fits} |"
        )
    for row in result["rows"]:
        if "peak_gib_by_line" in row:
            lines += [
                "",
                f"The line through 2 and 4 layers gives {row['peak_gib_by_line']:.2f} GiB for "
                f"{row['name']} at {row['global_batch_size']:,}; its full compile "
                f"{row['peak_gib']:.2f} GiB.",
            ]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Compiles all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer-python", default=ROOT.parent / ".venv-tpu/bin/python")
    parser.add_argument("--compiler-python", default=ROOT.parent / ".venv-tpu-compiler/bin/python")
    parser.add_argument("--work", type=Path, default=ROOT.parent / "runs/tpu")
    parser.add_argument("--output", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    arguments.source = _source_digest()
    entries = []
    versions: dict = {}
    for row in rows():
        found = {}
        for depth in row.depths:
            found[depth] = compile_one(request(row, depth), row.topology, arguments)
            versions |= {
                k: v for k, v in found[depth].items() if k in ("tensorflow", "jax", "libtpu")
            }
        entries.append(describe(row, found) | {"source": arguments.source})
        shown = {k: v for k, v in entries[-1].items() if k != "compiled"}
        print(json.dumps(shown), flush=True)
        about = {"date": time.strftime("%Y-%m-%d"), **versions}
        result = {"environment": about, "rows": entries}
        (arguments.output / "tpu_memory.json").write_text(json.dumps(result, indent=1) + "\n")
        write_table(result, arguments.output / "tpu_memory.md")


if __name__ == "__main__":
    main()
