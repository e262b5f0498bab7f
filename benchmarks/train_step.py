"""Claim: a training step takes less time than open_clip's on the same CPU.

A small SigLIP, a ViT with class token and a bidirectional text transformer, is trained on batches
that lie in memory: by sigline's own step (as `sigline train` builds it), by open_clip's
`train_one_epoch` with its CLIP and its `SigLipLoss`, both from its PyPI package, and by the same
step written in JAX. All have the same sizes, exact GELU, float32, AdamW and a clipped global norm.
Each is run as its project runs it: sigline's last block computes the one token that its pool reads.

Each variant has a process of its own with two threads; the driver runs them in turn, round by
round, and compares within a round. Writes `train_step.json` and `train_step.md` below `--output`.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import machine
import workers

THREADS = 2
IMAGE, PATCH, LENGTH, VOCABULARY = 96, 16, 16, 8_192
WIDTH, DEPTH, HEADS, MLP = 256, 6, 4, 1_024
EPSILON, BETAS, RATE, DECAY = 1e-6, (0.9, 0.95), 1e-3, 1e-4
OPEN_CLIP = "open-clip"
VARIANTS = {
    "sigline": "sigline",
    "sigline-xla": "sigline, jit_compile=true",
    OPEN_CLIP: "open_clip train_one_epoch, torch",
    "jax": "the same step in JAX, jit",
}


def make_batch(batch: int):
    """Returns random pixels `(batch, size, size, 3)` and tokens `(batch, length)`."""
    import numpy as np

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, IMAGE, IMAGE, 3), np.uint8)
    return pixels, rng.integers(1, VOCABULARY, (batch, LENGTH)).astype(np.int32)


def _sigline(batch: int, *, jit_compile: bool | None):
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    from sigline.trainer import config
    from sigline.trainer.models import two_tower
    from sigline.trainer.training import start, train_step
    from sigline.trainer.training.calls import Models

    sizes = {"width": WIDTH, "depth": DEPTH, "mlp_dim": MLP, "num_heads": HEADS}
    block = config.BlockConfig(activation="gelu", norm_epsilon=EPSILON)
    settings = config.TrainConfig(
        name="benchmark",
        steps=1_000_000,
        global_batch_size=batch,
        image=config.ImageTowerConfig(
            size=IMAGE,
            patch=PATCH,
            pool="tok",
            embedding_norm=True,
            patch_bias=False,
            projection=WIDTH,
            projection_bias=False,
            block=block,
            **sizes,
        ),
        text=config.TextTowerConfig(
            vocabulary_size=VOCABULARY, length=LENGTH, block=block, **sizes
        ),
        optimizer=config.OptimizerConfig(
            learning_rate=RATE,
            weight_decay=DECAY,
            beta_1=BETAS[0],
            beta_2=BETAS[1],
            schedule="constant",
        ),
        run=config.RunConfig(jit_compile=jit_compile),
    )
    models = Models.of(settings, two_tower.build(settings))
    state = start.make_state(models)
    step = train_step.make_train_step(models, state, tf.distribute.get_strategy())
    pixels, ids = (tf.constant(x) for x in make_batch(batch))

    def run(count: int) -> None:
        for _ in range(count):
            scalars = step({"image": pixels, "text": ids}, 1)
        # Waits until all is done.
        float(scalars["loss"])

    return run, sum(int(v.shape.num_elements()) for v in state.parameters.values())


def _open_clip(batch: int):
    import torch

    torch.set_num_threads(THREADS)
    workers.stub_torchvision()
    import open_clip
    from open_clip_train.train import train_one_epoch

    model = open_clip.model.CustomTextCLIP(
        WIDTH,
        vision_cfg={
            "image_size": IMAGE,
            "patch_size": PATCH,
            "width": WIDTH,
            "layers": DEPTH,
            "head_width": WIDTH // HEADS,
            "mlp_ratio": MLP / WIDTH,
            "norm_kwargs": {"eps": EPSILON},
        },
        text_cfg={
            "context_length": LENGTH,
            "vocab_size": VOCABULARY,
            "width": WIDTH,
            "heads": HEADS,
            "layers": DEPTH,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": EPSILON},
        },
        init_logit_bias=-10.0,
        output_dict=True,
    )
    # PyTorch multiplies the decay by the rate.
    options = {"lr": RATE, "betas": BETAS, "weight_decay": DECAY / RATE}
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    pixels, ids = (torch.from_numpy(x) for x in make_batch(batch))
    pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    settings = argparse.Namespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        grad_clip_norm=1.0,
        rank=0,
        log_every_n_steps=1_000_000,
        batch_size=batch,
        world_size=1,
        wandb=False,
        horovod=False,
    )

    class Loader(list):
        num_batches = num_samples = batch

    class Data:
        def __init__(self, count: int):
            self.dataloader = Loader([(pixels.contiguous(), ids)] * count)

        def set_epoch(self, epoch: int):
            pass

    loss = open_clip.loss.SigLipLoss()

    def run(count: int) -> None:
        data = {"train": Data(count)}
        train_one_epoch(model, data, loss, 0, optimizer, None, None, None, settings)

    return run, sum(p.numel() for p in model.parameters())


def _jax(batch: int):
    os.environ["XLA_FLAGS"] = (
        f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={THREADS}"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def dense(inputs, outputs, bias=True):
        kernel = rng.standard_normal((inputs, outputs), np.float32) * inputs**-0.5
        return {"kernel": kernel} | ({"bias": np.zeros(outputs, np.float32)} if bias else {})

    def norm():
        return {"scale": np.ones(WIDTH, np.float32), "bias": np.zeros(WIDTH, np.float32)}

    def encoder():
        blocks = [
            {
                "norm_1": norm(),
                "qkv": dense(WIDTH, 3 * WIDTH),
                "out": dense(WIDTH, WIDTH),
                "norm_2": norm(),
                "up": dense(WIDTH, MLP),
                "down": dense(MLP, WIDTH),
            }
            for _ in range(DEPTH)
        ]
        return {"blocks": blocks, "norm": norm()}

    def table(*shape):
        return rng.standard_normal(shape, np.float32) * WIDTH**-0.5

    parameters = {
        "patches": dense(3 * PATCH**2, WIDTH, bias=False),
        "token": np.zeros((1, 1, WIDTH), np.float32),
        "image_positions": table((IMAGE // PATCH) ** 2 + 1, WIDTH),
        "embedding_norm": norm(),
        "image": encoder(),
        "projection": dense(WIDTH, WIDTH, bias=False),
        "tokens": table(VOCABULARY, WIDTH),
        "text_positions": table(LENGTH, WIDTH),
        "text": encoder(),
        "head": dense(WIDTH, WIDTH),
        "log_temperature": np.float32(np.log(10.0)),
        "bias": np.float32(-10.0),
    }
    parameters = jax.tree.map(jnp.asarray, parameters)

    def apply_dense(p, x):
        return x @ p["kernel"] + p.get("bias", 0.0)

    def apply_norm(p, x):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + EPSILON) * p["scale"] + p["bias"]

    def attention(p, x):
        batch, tokens, _ = x.shape
        qkv = apply_dense(p["qkv"], x).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS)
        q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        weights = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) * (WIDTH // HEADS) ** -0.5)
        x = (weights @ v).transpose(0, 2, 1, 3).reshape(batch, tokens, WIDTH)
        return apply_dense(p["out"], x)

    def encode(p, x):
        for block in p["blocks"]:
            x = x + attention(block, apply_norm(block["norm_1"], x))
            hidden = apply_dense(block["up"], apply_norm(block["norm_2"], x))
            x = x + apply_dense(block["down"], jax.nn.gelu(hidden, approximate=False))
        return apply_norm(p["norm"], x)

    def normalize(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def loss_of(p, pixels, ids):
        grid = IMAGE // PATCH
        x = pixels.astype(jnp.float32) / 127.5 - 1.0
        x = x.reshape(-1, grid, PATCH, grid, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
        x = apply_dense(p["patches"], x.reshape(-1, grid**2, 3 * PATCH**2))
        x = jnp.concatenate([jnp.repeat(p["token"], len(x), 0), x], 1) + p["image_positions"]
        x = encode(p["image"], apply_norm(p["embedding_norm"], x))[:, 0]
        image = normalize(apply_dense(p["projection"], x))
        x = encode(p["text"], p["tokens"][ids] + p["text_positions"])[:, -1]
        text = normalize(apply_dense(p["head"], x))
        logits = jnp.exp(p["log_temperature"]) * image @ text.T + p["bias"]
        signs = 2.0 * jnp.eye(len(image)) - 1.0
        return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * logits), axis=-1))

    def update(state, pixels, ids):
        p, first, second, number = state
        loss, slope = jax.value_and_grad(loss_of)(p, pixels, ids)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(slope)))
        slope = jax.tree.map(lambda g: g * jnp.minimum(1.0, 1.0 / norm), slope)
        number = number + 1
        first = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * g, first, slope)
        second = jax.tree.map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * g**2, second, slope)

        def moved(p, m, v):
            m, v = m / (1 - BETAS[0] ** number), v / (1 - BETAS[1] ** number)
            decay = DECAY * p if p.ndim > 1 else 0.0
            return p - RATE * m / (jnp.sqrt(v) + 1e-8) - decay

        return (jax.tree.map(moved, p, first, second), first, second, number), loss

    step = jax.jit(update, donate_argnums=0)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = [(parameters, zeros, jax.tree.map(jnp.copy, zeros), jnp.float32(0))]
    pixels, ids = (jnp.asarray(x) for x in make_batch(batch))

    def run(count: int) -> None:
        for _ in range(count):
            state[0], loss = step(state[0], pixels, ids)
        float(loss)

    return run, sum(x.size for x in jax.tree.leaves(parameters))


def work(variant: str, batch: int, steps: int) -> None:
    """Serves one variant: answers each line on standard input by the time of some steps."""
    if variant == OPEN_CLIP:
        run, parameters = _open_clip(batch)
    elif variant == "jax":
        run, parameters = _jax(batch)
    else:
        run, parameters = _sigline(batch, jit_compile=True if variant == "sigline-xla" else None)
    run(3)
    workers.answer({"parameters": int(parameters)})
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run(steps)
        workers.answer({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})


def measure(batch: int, steps: int, rounds: int) -> list[dict]:
    """Returns a row per variant."""
    processes, rows = {}, {}
    for variant in VARIANTS:
        processes[variant] = workers.start(__file__, THREADS, "--worker", variant, batch, steps)
        rows[variant] = {"variant": variant} | workers.read(processes[variant], variant)
    times = workers.rounds(processes, rounds)
    for variant, row in rows.items():
        walls = [x["wall"] / steps for x in times[variant]]
        theirs = [x["wall"] / steps for x in times[OPEN_CLIP]]
        row["step_seconds"] = statistics.median(walls)
        row["cpu_seconds"] = statistics.median(x["cpu"] / steps for x in times[variant])
        row["pairs_per_second"] = batch / row["step_seconds"]
        # Within a round, so that a slower minute of the machine touches all.
        ratios = [b / a for a, b in zip(walls, theirs, strict=True)]
        row["times_open_clip"] = statistics.median(ratios)
        row["times_open_clip_range"] = [min(ratios), max(ratios)]
    return list(rows.values())


def markdown(results: dict) -> str:
    """Returns the table."""
    sizes = results["sizes"]
    lines = [
        "# Training step",
        "",
        f"{results['processor']}, {THREADS} threads, {results['date']}; `{results['command']}`.",
        f"ViT of {sizes['image']} pixels in patches of {sizes['patch']} and text of "
        f"{sizes['length']} tokens, both {sizes['depth']} blocks of width {sizes['width']}; batch "
        f"{results['batch']}; {results['rounds']} rounds of {results['steps']} steps, medians.",
        "",
        "| | parameters | ms a step | pairs/s | times open_clip (least, most) |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        low, high = row["times_open_clip_range"]
        lines.append(
            f"| {VARIANTS[row['variant']]} | {row['parameters']:,} | "
            f"{1e3 * row['step_seconds']:.0f} | {row['pairs_per_second']:.0f} | "
            f"{row['times_open_clip']:.2f} ({low:.2f}, {high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all variants and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        variant, batch, steps = arguments.worker
        work(variant, int(batch), int(steps))
        return
    rows = measure(arguments.batch, arguments.steps, arguments.rounds)
    results = {
        **machine.describe(),
        "command": "benchmarks/train_step.py",
        "threads": THREADS,
        "versions": machine.versions("tensorflow", "jax", "torch", "open-clip-torch"),
        "batch": arguments.batch,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "sizes": {
            "image": IMAGE,
            "patch": PATCH,
            "length": LENGTH,
            "width": WIDTH,
            "depth": DEPTH,
            "mlp": MLP,
            "heads": HEADS,
            "vocabulary": VOCABULARY,
        },
        "rows": rows,
    }
    machine.write_results(arguments.output, "train_step", results, markdown(results))


if __name__ == "__main__":
    main()
