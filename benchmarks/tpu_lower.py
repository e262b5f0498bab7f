"""Lowers sigline's training step to StableHLO for a TPU; runs in the environment of `[tpu]`.

No TPU is needed, and none can be used: the step is a pure function, so parameters and moments go in
as tensors and come out again, and the exchange between chips is the ring of raw TPU collectives.
"""

import argparse
import functools
import json
import os
import re
import time
from pathlib import Path

os.environ.update(TPU_SKIP_MDS_QUERY="1", TF_CPP_MIN_LOG_LEVEL="3")

import numpy as np
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.losses import collectives, pair_losses
from sigline.trainer.models import two_tower
from sigline.trainer.models.specs import parameter_specs
from sigline.trainer.objectives import base
from sigline.trainer.training import optimizers, steps
from sigline.trainer.training.calls import Models
from sigline.trainer.training.state import TrainState, trained_names


def lower(function, flat_specs: list[tf.TensorSpec], num_donated: int) -> str:
    """Returns the StableHLO of a function whose first results replace its first arguments."""
    compiled = tf.function(function, jit_compile=True, autograph=False)
    compiler_ir = compiled.experimental_get_compiler_ir(*flat_specs)
    text = compiler_ir(stage="stablehlo", platform_name="TPU")
    text = text if isinstance(text, str) else text.decode()
    # Without donation old and new state would count twice. Only the entry point is changed: all
    # functions number their arguments from zero.
    before, entry, rest = re.split(r"(func\.func (?:public )?@main\()", text, maxsplit=1)
    signature, newline, body = rest.partition("\n")
    for number in range(num_donated):
        signature, found = re.subn(
            rf"(%arg{number}: tensor<[^>]*>)(?! *{{)",
            rf"\1 {{tf.aliasing_output = {number} : i32}}",
            signature,
        )
        if found != 1:
            raise RuntimeError(f"Argument {number} of the lowered program was not found.")
    return before + entry + signature + newline + body


def lower_step(settings: config.TrainConfig, *, num_replicas: int, form: str) -> tuple[str, dict]:
    """Lowers one step of `settings`.

    Args:
        settings: The configuration.
        num_replicas: Chips in the ring.
        form: `live` for images in, `precomputed` for image embeddings in, and `-dense` behind it
            for the loss that holds the matrix of all pairs.

    Returns:
        The program and what it is.
    """
    batch = settings.global_batch_size // num_replicas
    model = two_tower.build(settings)
    specs = parameter_specs(settings)
    if form.startswith("precomputed"):
        specs = {n: spec for n, spec in specs.items() if not n.startswith("image/")}
    trained = trained_names(specs, settings)
    frozen = [n for n in specs if n not in trained]
    shapes = optimizers.shapes({n: specs[n].shape for n in trained}, settings)
    slots = {n: optimizers.slot_specs(shapes[n], settings.optimizer) for n in trained}
    averages = trained if settings.optimizer.ema_decay is not None else []
    # All that a step changes, as it comes in and goes out.
    skipped = tf.TensorSpec((2,), tf.int64)
    changing = ({n: specs[n] for n in trained}, slots, {n: specs[n] for n in averages}, skipped)
    donated = tf.nest.flatten(changing)
    inputs = _inputs(settings, batch, precomputed=form.startswith("precomputed"))
    exchange = collectives.tpu_ring(num_replicas)
    models = Models.of(settings, model, embedded=form.startswith("precomputed"))
    if form.endswith("dense"):
        models.objectives[0].loss = _dense_objective
    compute = functools.partial(
        steps.forward_backward,
        models=models,
        exchange=exchange,
    )

    def step(*flat):
        values, slots, ema, skipped = tf.nest.pack_sequence_as(changing, flat[: len(donated)])
        rest = flat[len(donated) :]
        values |= dict(zip(frozen, rest[: len(frozen)], strict=True))
        number, *values_of_inputs = rest[len(frozen) :]
        state = TrainState(values, slots, ema, number, skipped)
        state, scalars = steps.train_step(
            state,
            dict(zip(inputs, values_of_inputs, strict=True)),
            config=settings,
            exchange=exchange,
            compute=compute,
            update=functools.partial(steps.apply_gradients, config=settings),
        )
        values = {n: state.parameters[n] for n in trained}
        changed = (values, state.slots, state.ema, state.skipped)
        return (*tf.nest.flatten(changed), scalars["loss"], scalars["gradient_norm"])

    flat_specs = [*donated, *(specs[n] for n in frozen), tf.TensorSpec((), tf.int64)]
    flat_specs += inputs.values()
    text = lower(step, flat_specs, len(donated))
    number = sum(int(np.prod(spec.shape)) for spec in specs.values())
    return text, {"parameters": number, "batch_per_chip": batch, "form": form}


def _inputs(settings: config.TrainConfig, batch: int, *, precomputed: bool) -> dict:
    """Returns what a chip's part of the batch holds, by name."""
    size = settings.image.size
    image = tf.TensorSpec((batch, size, size, 3), tf.uint8)
    if precomputed:
        image = tf.TensorSpec((batch, settings.image.width), tf.bfloat16)
    inputs = {"image": image}
    if settings.text is not None:
        inputs["text"] = tf.TensorSpec((batch, settings.text.length), tf.int32)
    for objective in settings.objectives:
        if isinstance(objective, config.ClassifyConfig):
            inputs["label"] = tf.TensorSpec((batch, objective.labels_per_image), tf.int32)
    return inputs


def lower_loss(batch: int, dim: int, *, num_replicas: int, form: str) -> tuple[str, dict]:
    """Lowers the loss and its gradients alone, `ring` or `dense`."""
    exchange = collectives.tpu_ring(num_replicas)

    def loss(image, text, log_temperature, bias):
        inputs = (image, text, log_temperature, bias)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            if form == "dense":
                named = {"log_temperature": log_temperature, "bias": bias}
                value = _dense_loss(image, text, named, exchange)
            else:
                value = pair_losses.sigmoid_loss(
                    image, text, temperature=tf.exp(log_temperature), bias=bias, exchange=exchange
                ).loss
        return (value, *tape.gradient(value, inputs))

    specs = [tf.TensorSpec((batch, dim), tf.float32)] * 2 + [tf.TensorSpec((), tf.float32)] * 2
    return lower(loss, specs, 0), {"batch_per_chip": batch, "form": f"loss-{form}"}


def _dense_objective(outputs, call):
    value = _dense_loss(outputs["image"], outputs["text"], call.parameters, call.exchange)
    return base.Outcome({"loss": value})


def _dense_loss(image, text, parameters, exchange):
    """The loss as it is usually written: all texts in one place, one matrix, autodiff."""
    texts, blocks = text, [text]
    for _ in range(exchange.num_replicas - 1):
        (texts,) = exchange.shift([texts])
        blocks.append(texts)
    logits = tf.exp(parameters["log_temperature"]) * tf.matmul(
        image, tf.concat(blocks, 0), transpose_b=True
    )
    logits += parameters["bias"]
    # The own texts come first.
    signs = 2.0 * tf.eye(tf.shape(logits)[0], tf.shape(logits)[1]) - 1.0
    rows = tf.reduce_sum(tf.nn.softplus(-signs * logits), -1)
    global_batch = tf.cast(tf.shape(image)[0] * exchange.num_replicas, tf.float32)
    return tf.reduce_sum(rows) / global_batch


def main() -> None:
    """Lowers one program; writes it and a description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", type=Path, help="JSON: what to lower")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    request = json.loads(arguments.request.read_text())
    started = time.perf_counter()
    if "loss" in request:
        text, description = lower_loss(**request["loss"])
    else:
        settings = config.from_json(json.dumps(request["config"]))
        text, description = lower_step(
            settings, num_replicas=request["num_replicas"], form=request["form"]
        )
    description["lower_seconds"] = time.perf_counter() - started
    description["tensorflow"] = tf.__version__
    arguments.output.write_text(text)
    arguments.output.with_suffix(".json").write_text(json.dumps(description, indent=1))


if __name__ == "__main__":
    main()
