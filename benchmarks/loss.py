"""Claim: the sigmoid loss costs little more than its three products, in time and in memory.

Compares forward and backward of sigline's loss with the same loss as it is usually written (dense
TensorFlow, eager and XLA; dense JAX, jitted), with open_clip's `SigLipLoss` from its PyPI package,
and with the bare products `X Y^T`, `S Y`, `S^T X`, which no implementation can do without. Each
variant has a process of its own with two threads; the driver runs them in turn, round by round.

Peak memory is that of the process during its first call of that size, compilation included, above
what it held with the inputs in place and after a call with 256 pairs. Errors are those of the loss
against float64. Writes `loss.json`, `loss.md` and `loss.png` below `--output`.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path

import machine
import workers

THREADS = 2
LOG_TEMPERATURE, BIAS = 2.302585, -10.0
# Share of the machine's memory for one call of a dense variant: the other processes stay alive.
MEMORY_SHARE = 0.5
GEMM = "gemm-tf"
SIGLINE = "sigline"
VARIANTS = {
    SIGLINE: "sigline",
    "sigline-xla": "sigline, whole step under XLA",
    GEMM: "three bare products, TensorFlow",
    "gemm-torch": "three bare products, torch",
    "dense-tf-eager": "dense TensorFlow, eager",
    "dense-tf-xla": "dense TensorFlow, XLA",
    "dense-jax": "dense JAX, jit",
    "open-clip": "open_clip SigLipLoss, torch",
}


def make_pairs(batch: int, dim: int):
    """Returns unit embeddings of related images and texts, float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    image = rng.standard_normal((batch, dim), np.float32)
    text = 0.5 * image + rng.standard_normal((batch, dim), np.float32)
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]


def _tensorflow(variant: str):
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    from sigline.trainer.losses import pair_losses

    def gradients(loss, image, text):
        scalars = tf.constant(LOG_TEMPERATURE), tf.constant(BIAS)
        with tf.GradientTape() as tape:
            tape.watch((image, text, *scalars))
            value = loss(image, text, *scalars)
        return (value, *tape.gradient(value, (image, text, *scalars)))

    def dense(image, text, log_temperature, bias):
        logits = tf.exp(log_temperature) * tf.matmul(image, text, transpose_b=True) + bias
        signs = 2.0 * tf.eye(tf.shape(logits)[0]) - 1.0
        return -tf.reduce_mean(tf.reduce_sum(tf.math.log_sigmoid(signs * logits), -1))

    def ours(image, text, log_temperature, bias):
        temperature = tf.exp(log_temperature)
        return pair_losses.sigmoid_loss(image, text, temperature=temperature, bias=bias).loss

    def products(image, text):
        scores = tf.matmul(image, text, transpose_b=True)
        images = tf.matmul(scores, text)
        return scores[0, 0], images, tf.matmul(scores, image, transpose_a=True)

    compute = {
        SIGLINE: lambda: tf.function(lambda x, y: gradients(ours, x, y)),
        "sigline-xla": lambda: tf.function(lambda x, y: gradients(ours, x, y), jit_compile=True),
        GEMM: lambda: tf.function(products),
        "dense-tf-eager": lambda: lambda x, y: gradients(dense, x, y),
        "dense-tf-xla": lambda: tf.function(lambda x, y: gradients(dense, x, y), jit_compile=True),
    }[variant]()
    return tf.constant, lambda x, y: float(compute(x, y)[0])


def _torch(variant: str):
    import importlib.util

    import torch

    torch.set_num_threads(THREADS)
    # The file of the package alone: the rest of it needs a torchvision that fits this torch.
    folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(folder) / "loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.SigLipLoss()

    def open_clip(image, text):
        inputs = [x.detach().requires_grad_() for x in (image, text)]
        log_temperature = torch.tensor(LOG_TEMPERATURE, requires_grad=True)
        bias = torch.tensor(BIAS, requires_grad=True)
        value = loss(*inputs, log_temperature.exp(), bias)
        value.backward()
        return value.item()

    def products(image, text):
        scores = image @ text.T
        images, texts = scores @ text, scores.T @ image
        return scores[0, 0].item() + 0.0 * (images[0, 0] + texts[0, 0]).item()

    return torch.from_numpy, open_clip if variant == "open-clip" else products


def _jax():
    os.environ["XLA_FLAGS"] = (
        f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={THREADS}"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    def dense(image, text, log_temperature, bias):
        logits = jnp.exp(log_temperature) * image @ text.T + bias
        signs = 2.0 * jnp.eye(len(image)) - 1.0
        return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * logits), axis=-1))

    compute = jax.jit(jax.value_and_grad(dense, argnums=(0, 1, 2, 3)))

    def call(image, text):
        value, gradients = jax.block_until_ready(compute(image, text, LOG_TEMPERATURE, BIAS))
        del gradients
        return float(value)

    return jnp.asarray, call


def _memory_mib(field: str) -> float:
    with open("/proc/self/status") as handle:
        return next(float(x.split()[1]) / 1024 for x in handle if x.startswith(field))


def _reset_peak() -> float:
    """Returns what the process holds, in MiB, and lets its peak start there."""
    gc.collect()
    # What was freed but not given back could be used again without being seen.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _memory_mib("VmRSS")


def work(variant: str, batch: int, dim: int) -> None:
    """Serves one variant: answers each line on standard input by one call, timed."""
    if variant == "dense-jax":
        convert, compute = _jax()
    elif variant in ("open-clip", "gemm-torch"):
        convert, compute = _torch(variant)
    else:
        convert, compute = _tensorflow(variant)
    compute(*map(convert, make_pairs(256, dim)))
    inputs = [convert(x) for x in make_pairs(batch, dim)]
    before = _reset_peak()
    value = compute(*inputs)
    workers.answer({"peak_mib": _memory_mib("VmHWM") - before, "loss": value})
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        compute(*inputs)
        elapsed = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        workers.answer(elapsed)


def work_replicas(replicas: int, batch: int, dim: int) -> None:
    """Prints the peak memory per replica of the loss on several virtual CPUs."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    import tensorflow as tf

    from sigline.trainer.losses import pair_losses

    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * replicas
    tf.config.set_logical_device_configuration(cpu, devices)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])

    def inputs(size):
        image, text = make_pairs(size * replicas, dim)

        def own(context):
            rows = slice(
                context.replica_id_in_sync_group * size,
                (context.replica_id_in_sync_group + 1) * size,
            )
            return tf.constant(image[rows]), tf.constant(text[rows])

        return strategy.experimental_distribute_values_from_function(own)

    @tf.function
    def step(values):
        def replica(values):
            image, text = values
            with tf.GradientTape() as tape:
                tape.watch(values)
                loss = pair_losses.sigmoid_loss(image, text, temperature=10.0, bias=BIAS).loss
            return (loss, *tape.gradient(loss, values))

        return strategy.run(replica, args=(values,))

    step(inputs(256))
    real = inputs(batch)
    before = _reset_peak()
    step(real)
    peak = _memory_mib("VmHWM") - before
    workers.answer({"peak_mib": peak, "peak_mib_per_replica": peak / replicas})


def measure(batch: int, dim: int, rounds: int, skip: dict[str, str]) -> list[dict]:
    """Returns a row per variant at one size."""
    reference = float64_loss(batch, dim)
    source = _source_digest()
    rows, processes = [], {}
    for variant in VARIANTS:
        row = {"variant": variant, "batch": batch, "dim": dim, "source": source}
        rows.append(row)
        if variant in skip:
            row["not_run"] = skip[variant]
            continue
        process = workers.start(__file__, THREADS, "--worker", variant, batch, dim)
        first = workers.read(process, variant)
        processes[variant] = process
        row["peak_mib"] = first["peak_mib"]
        row["rounds"] = rounds
        if "gemm" not in variant:
            row["loss_error"] = abs(first["loss"] / reference - 1.0)
    times = workers.rounds(processes, rounds)
    for row in rows:
        for kind in ("wall", "cpu"):
            if row["variant"] in times:
                values = [x[kind] for x in times[row["variant"]]]
                bound = [x[kind] for x in times[GEMM]]
                row[f"{kind}_seconds"] = statistics.median(values)
                # Ratios within a round, so that a slower minute of the machine touches both.
                row[f"{kind}_over_gemm"] = statistics.median(
                    a / b for a, b in zip(values, bound, strict=True)
                )
    return rows


def float64_loss(batch: int, dim: int) -> float:
    """Returns the loss in float64, a thousand rows at a time."""
    import numpy as np

    image, text = (x.astype(np.float64) for x in make_pairs(batch, dim))
    total = 0.0
    for start in range(0, batch, 1024):
        logits = np.exp(LOG_TEMPERATURE) * image[start : start + 1024] @ text.T + BIAS
        positives = logits[np.arange(len(logits)), start + np.arange(len(logits))]
        total += np.logaddexp(0, logits).sum() - positives.sum()
    return total / batch


def _skips(batch: int, dim: int, rows: list[dict]) -> dict[str, str]:
    """Foresees what would not fit: dense memory grows with the square of the batch."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20 * MEMORY_SHARE
    largest = {r["variant"]: r for r in rows if r["dim"] == dim and "peak_mib" in r}
    skips = {}
    for variant, row in largest.items():
        expected = row["peak_mib"] * (batch / row["batch"]) ** 2
        if not variant.startswith(SIGLINE) and expected > available:
            skips[variant] = f"would need about {expected / 1024:.0f} GiB"
    return skips


def environment() -> dict[str, object]:
    """Returns what the figures depend on."""
    return {
        **machine.describe(),
        "command": "benchmarks/loss.py",
        "threads": THREADS,
        "versions": machine.versions("tensorflow", "jax", "torch", "open-clip-torch", "numpy"),
    }


def _source_digest() -> str:
    """Returns the digest of the code that is measured."""
    from sigline.schemas import digests

    return digests.source_digest(Path(__file__).resolve().parents[1] / "trainer", ("losses",))


def write_table(result: dict, path: Path) -> None:
    """Writes a Markdown table."""
    about = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines = [
        "# The sigmoid loss, forward and backward",
        "",
        f"{about['date']}, {about['cpu_count']} cores of {about['processor']}, "
        f"{about['memory_gib']} GiB; {versions}. Command: `{about['command']}`. "
        "How it is measured: the docstring of `benchmarks/loss.py`.",
        "",
        "Time is the median wall time; the ratio is the median over rounds of the wall time over "
        "that of the bare products of TensorFlow. Peak is memory beyond the inputs.",
    ]
    for dim in sorted({row["dim"] for row in result["rows"]}):
        lines += ["", f"## d = {dim}", ""]
        lines += [
            "| batch | variant | rounds | seconds | / products | peak MiB | error of the loss |"
        ]
        lines += ["| ---: | --- | ---: | ---: | ---: | ---: | ---: |"]
        for row in result["rows"]:
            if row["dim"] != dim:
                continue
            name = VARIANTS[row["variant"]]
            if "not_run" in row:
                lines.append(f"| {row['batch']:,} | {name} | not run: {row['not_run']} | | | | |")
                continue
            error = f"{row['loss_error']:.0e}" if "loss_error" in row else ""
            lines.append(
                f"| {row['batch']:,} | {name} | {row['rounds']} | {row['wall_seconds']:.3f} | "
                f"{row['wall_over_gemm']:.2f} | {row['peak_mib']:,.0f} | {error} |"
            )
    if result["replicas"]:
        lines += ["", "## Memory of one replica as their number grows", ""]
        lines += ["| replicas | batch per replica | d | peak MiB per replica |"]
        lines += ["| ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {x['replicas']} | {x['batch']:,} | {x['dim']} | {x['peak_mib_per_replica']:.0f} |"
        for x in result["replicas"]
    ]
    path.write_text("\n".join(lines) + "\n")


def draw(result: dict, path: Path) -> None:
    """Draws time and memory over the batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dims = sorted({row["dim"] for row in result["rows"]})
    figure, axes = pyplot.subplots(2, len(dims), figsize=(5.5 * len(dims), 8), squeeze=False)
    for column, dim in enumerate(dims):
        for variant, label in VARIANTS.items():
            rows = [
                r
                for r in result["rows"]
                if r["dim"] == dim and r["variant"] == variant and "peak_mib" in r
            ]
            batches = [r["batch"] for r in rows]
            style = {
                "marker": "o",
                "label": label,
                "linewidth": 2.5 if variant == SIGLINE else 1.0,
                "linestyle": "--" if "gemm" in variant else "-",
            }
            axes[0, column].plot(batches, [r["wall_over_gemm"] for r in rows], **style)
            axes[1, column].plot(batches, [max(r["peak_mib"], 1.0) for r in rows], **style)
        for axis, name in zip(axes[:, column], ("time / bare products", "peak MiB"), strict=True):
            axis.set_xscale("log", base=2)
            axis.set_xlabel("batch")
            axis.set_ylabel(name)
            axis.set_title(f"d = {dim}")
            axis.grid(alpha=0.3)
        axes[1, column].set_yscale("log")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle("Sigmoid loss, forward and backward, two CPU cores")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 4096, 8192, 16384, 32768])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 768])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--resume", action="store_true", help="keep the sizes that are done")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--replicas", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        variant, batch, dim = arguments.worker
        return work(variant, int(batch), int(dim))
    if arguments.replicas:
        return work_replicas(*map(int, arguments.replicas))
    path = arguments.output / "loss.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result: dict = {"environment": environment(), "rows": [], "replicas": []}
    if arguments.resume and path.exists():
        before = json.loads(path.read_text())
        if before["environment"] == result["environment"]:
            rows = [row for row in before["rows"] if row["source"] == _source_digest()]
            result = before | {"rows": rows}
    done = {(row["batch"], row["dim"]) for row in result["rows"]}
    for dim in arguments.dims:
        for batch in sorted(arguments.batches):
            if (batch, dim) in done:
                continue
            # The largest take half a minute a call.
            rounds = arguments.rounds if batch < 2**14 else 2
            skip = _skips(batch, dim, result["rows"])
            result["rows"] += measure(batch, dim, rounds, skip)
            result["rows"].sort(key=lambda row: (row["dim"], row["batch"]))
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(f"batch {batch}, d = {dim}: done", flush=True)
    result["replicas"] = []
    for replicas in (1, 2, 4):
        process = workers.start(__file__, THREADS, "--replicas", replicas, 4096, 64)
        row = {"replicas": replicas, "batch": 4096, "dim": 64}
        result["replicas"].append(row | workers.read(process, f"{replicas} replicas"))
        process.wait()
    path.write_text(json.dumps(result, indent=1) + "\n")
    write_table(result, arguments.output / "loss.md")
    draw(result, arguments.output / "loss.png")
    return None


if __name__ == "__main__":
    main()
