"""Computes losses and gradients on several virtual CPUs; a process of its own for each count.

Usage: replica_losses.py REPLICAS INPUTS.npz OUTPUTS.npz

With `TF_CONFIG` set, the process is one worker of several, with one replica each.
"""

import os
import sys

import numpy as np

from sigline import quiet

quiet.import_tensorflow()
import tensorflow as tf

from sigline.trainer.losses import collectives, negatives, pair_labels, pair_losses

# Divides none of the batches per replica.
CHUNK_SIZE = 5
TEMPERATURE, BIAS = 10.0, -3.0


def main() -> None:
    replicas, inputs, outputs = int(sys.argv[1]), dict(np.load(sys.argv[2])), sys.argv[3]
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        np.savez(
            outputs,
            replicas=strategy.num_replicas_in_sync,
            **{
                f"auto/{case}/{name}": value
                for case in ("sigmoid", "softmax")
                for name, value in _run(strategy, case, "auto", inputs).items()
            },
        )
        return
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * replicas
    tf.config.set_logical_device_configuration(cpu, devices)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    found = {}
    for form in ("ring", "all_gather"):
        for case in ("sigmoid", "softmax", "groups", "soft", "matrix", "masked", "random", "hard"):
            for name, value in _run(strategy, case, form, inputs).items():
                found[f"{form}/{case}/{name}"] = value
    try:
        with strategy.scope():
            pair_losses.sigmoid_loss(tf.ones((2, 2)), tf.ones((2, 2)), temperature=1.0, bias=0.0)
    except RuntimeError as error:
        found["error"] = np.array(str(error))
    np.savez(outputs, **found)


def _run(strategy, case: str, form: str, inputs: dict) -> dict:
    @tf.function(autograph=False)
    def step():
        return strategy.run(lambda: _replica(case, form, inputs))

    image, text, *rest = (strategy.experimental_local_results(x) for x in step())
    found = {"image": np.concatenate(image), "text": np.concatenate(text)}
    for name, values in zip(("loss", "temperature", "bias"), rest, strict=False):
        found[name] = np.sum(values)
    return found


def _replica(case: str, form: str, inputs: dict):
    context = tf.distribute.get_replica_context()
    me = tf.cast(context.replica_id_in_sync_group, tf.int32)
    batch = len(inputs["image"]) // context.num_replicas_in_sync
    mine = {k: tf.cast(v, v.dtype)[me * batch : (me + 1) * batch] for k, v in inputs.items()}
    image, text = tf.cast(mine["image"], tf.float32), tf.cast(mine["text"], tf.float32)
    temperature, bias = tf.constant(TEMPERATURE), tf.constant(BIAS)
    options = {
        "temperature": temperature,
        "chunk_size": CHUNK_SIZE,
        "exchange": collectives.exchange_for_context(form),
    }
    with tf.GradientTape() as tape:
        tape.watch((image, text, temperature, bias))
        options["temperature"] = temperature
        if case == "softmax":
            loss = pair_losses.softmax_loss(image, text, **options).loss
            watched = (image, text, temperature)
        else:
            loss = pair_losses.sigmoid_loss(
                image, text, bias=bias, **options, **_case_options(case, mine, me, batch)
            ).loss
            watched = (image, text, temperature, bias)
    image, text, *scalars = tape.gradient(loss, watched)
    return (image, text, loss, *scalars)


def _case_options(case: str, mine: dict, me, batch: int) -> dict:
    if case == "sigmoid":
        return {}
    if case in ("random", "hard"):
        return {"negatives": negatives.Negatives(case, per_image=4, seed=7)}
    if case == "groups":
        labels = pair_labels.same_group(mine["image_group"], mine["text_group"])
    elif case == "soft":
        labels = pair_labels.from_teacher(
            mine["teacher_image"], mine["teacher_text"], temperature=5.0, bias=-1.0
        )
    elif case == "matrix":
        labels = pair_labels.from_matrix(
            mine["targets"], weights=mine["weights"], first_row=me * batch
        )
    else:
        labels = pair_labels.masked(
            pair_labels.identity(batch, me), image=mine["image_valid"], text=mine["text_valid"]
        )
    return {"labels": labels}


if __name__ == "__main__":
    main()
