"""Trains steps on one and on two virtual CPUs of one process, and prints what comes out.

Usage: replica_objectives.py SPLIT_DIR FOLDER_OF_TOY_OBJECTIVE
"""

import dataclasses
import json
import sys

import numpy as np

from sigline import quiet

quiet.import_tensorflow()
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.inputs import data
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import making
from sigline.trainer.training import attention_monitor, start, train_step
from sigline.trainer.training.calls import Models


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, sys.argv[2])
    import toy_objective

    making.OBJECTIVES = toy_objective.register()
    # As many as each of two replicas has.
    attention_monitor.EXAMPLES = 4
    tiny = config.tiny(config.load_recipe("vit_s16"))
    sizes = ["image.depth=1", "image.patch=8", "image.size=32", "image.classes=36"]
    # A FlexiViT, whose kernel and positions are of another size than those of its step.
    sizes += ["image.grids=[2]", "image.position_grid=3", "image.positions=learned"]
    options = ["data.mixup=0", "run.jit_compile=false", "optimizer.clip_norm=0.1"]
    tiny = config.override(tiny, [*sizes, *options, "objectives.classify.unlabelled=skip"])
    toys = toy_objective.ToyConfig, toy_objective.ToyOfPairsConfig
    objectives = (*tiny.objectives, *(toy(variants=(1,)) for toy in toys))
    for parts in (1, 2):
        settings = dataclasses.replace(tiny, objectives=objectives, microbatches=parts)
        runs = [_run(settings, strategy) for strategy in _strategies()]
        print(json.dumps([parts, *runs]), flush=True)


def _strategies():
    return tf.distribute.OneDeviceStrategy("CPU:0"), tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"]
    )


def _run(settings, strategy):
    with strategy.scope():
        models = Models.of(settings, two_tower.build(settings))
        state = start.make_state(models)
    step = train_step.make_train_step(models, state, strategy)
    replicas = strategy.num_replicas_in_sync

    def local(context):
        # Each replica gets a contiguous part, so that replicas together have the whole batch.
        dataset = data.training_batches(sys.argv[1], settings, models.needs, first_step=0)
        return dataset.unbatch().batch(settings.global_batch_size // replicas)

    batches = iter(strategy.distribute_datasets_from_function(local))
    for number in range(1, 5):
        batch = next(batches)
        scalars = step(batch, number)
    if settings.microbatches == 1:
        # The first images of the first replica are those of the whole batch.
        scalars |= attention_monitor.make_monitor(models, strategy)(batch)
    extras = {f"{toy}/{n}": x for toy, own in state.extras.items() for n, x in own.items()}
    values = {**state.parameters, **extras}
    norms = {name: float(np.linalg.norm(x.numpy())) for name, x in values.items()}
    return {name: float(x) for name, x in scalars.items()} | norms


if __name__ == "__main__":
    main()
