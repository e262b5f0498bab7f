"""Strategies by name, and what several workers must agree on."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy that a configuration names; see `TrainConfig.strategy`."""
    # This comes first, since nothing may run in TensorFlow before a multi-worker strategy is made.
    if name == "multi_worker" or (name == "auto" and _num_workers() > 1):
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "tpu" or (name == "auto" and _has_tpu()):
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    if name == "mirrored":
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "auto" and len(gpus) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _num_workers() -> int:
    """Returns the number of workers that `$TF_CONFIG` names; none if it is not set."""
    cluster = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {})
    return len(cluster.get("chief", [])) + len(cluster.get("worker", []))


def num_local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Returns how many replicas this process runs."""
    workers = 1
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        workers = max(_num_workers(), 1)
    return strategy.num_replicas_in_sync // workers


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes: the first worker, or the only one."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        return True
    # A single worker has no task type and counts as the chief.
    kind = resolver.task_type or "worker"
    if "chief" in resolver.cluster_spec().as_dict():
        return kind == "chief"
    return kind == "worker" and not resolver.task_id


def _has_tpu() -> bool:
    return Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()


def agreement(strategy: tf.distribute.Strategy) -> Callable[[bool], bool]:
    """Returns a function that says whether something holds on any worker, the same on all.

    A worker that stopped alone would leave the others waiting for it.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda holds: holds
    add = _sum_over_workers(strategy)
    return lambda holds: add([float(holds)])[0] > 0


def check_same_start(strategy: tf.distribute.Strategy, first_step: int) -> None:
    """Raises on all workers if they do not go on from the same step."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    add = _sum_over_workers(strategy)
    count, total, squares = add([1.0, float(first_step), float(first_step) ** 2])
    if squares * count != total**2:
        leave_together(strategy)
        raise RuntimeError(
            "All workers must go on from the same checkpoint; give them a folder that all see. "
            f"Received: step {first_step} here, {total / count:.1f} on average"
        )


def leave_together(strategy: tf.distribute.Strategy) -> None:
    """Waits until all workers have come here, before this one ends.

    A sum that is complete on one worker may still be on its way to another; whoever ended then
    would close the connection that the other reads from.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    # This sum is a barrier only: once any worker has it, all workers have the sums before it.
    with contextlib.suppress(tf.errors.OpError):
        _sum_over_workers(strategy)([0.0])


def _sum_over_workers(strategy: tf.distribute.Strategy) -> Callable[[list[float]], np.ndarray]:
    def here(x):
        context = tf.distribute.get_replica_context()
        # A copy on the replica's own device.
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(x))

    @tf.function(autograph=False)
    def add(x):
        return strategy.experimental_local_results(strategy.run(here, args=(x,)))[0]

    return lambda values: add(tf.constant(values, tf.float64)).numpy()
