"""The training loop: one compiled step, any `tf.distribute` strategy, exact resume."""

import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from sigline.trainer import (
    collectives,
    data,
    export,
    optimizers,
    preemption,
    preprocess,
    progress,
    steps,
    two_tower,
)
from sigline.trainer.checkpoints import Checkpoints
from sigline.trainer.config import TrainConfig
from sigline.trainer.weights import checkpoint
from sigline.trainer.weights.checkpoint import Weights


@dataclass(frozen=True)
class TrainResult:
    """What a finished run hands on.

    Attributes:
        model: The trained model; with the averages of its parameters, if the run keeps them.
        tokenizer: The vocabulary it was trained with.
        first_step: The step that the run started or resumed at.
        images_per_second: Mean over the steps of this process, without the first, which compiles;
            0.0 where fewer than two steps were left to do.
        data_wait_fraction: Share of the time spent waiting for data.
        final_loss: Loss of the last logged step; NaN where no step was left to do.
        is_chief: Whether this process is the one of several workers that writes.
    """

    model: two_tower.TwoTower
    tokenizer: preprocess.Tokenizer
    first_step: int
    images_per_second: float
    data_wait_fraction: float
    final_loss: float
    is_chief: bool


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy that a configuration names; see `TrainConfig.strategy`."""
    # First, since nothing may run in TensorFlow before it.
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


def _is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes: the first worker, or the only one."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        return True
    # One worker is not started as one of several.
    kind = resolver.task_type or "worker"
    if "chief" in resolver.cluster_spec().as_dict():
        return kind == "chief"
    return kind == "worker" and not resolver.task_id


def _has_tpu() -> bool:
    return Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()


def train(
    config: TrainConfig,
    *,
    split_dir: str | Path,
    vocabulary: bytes,
    checkpoint_dir: str | Path,
    log_dir: str | Path | None = None,
    weights: Weights | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> TrainResult:
    """Trains a model, or finishes a run that was interrupted.

    Args:
        config: The configuration.
        split_dir: Folder with the training shards.
        vocabulary: A serialized SentencePiece model.
        checkpoint_dir: Folder of this run's checkpoints; if it holds one, training goes on there.
            Several workers must share it; the first one writes.
        log_dir: Folder for TensorBoard events; none are written if it is not given.
        weights: What the parameters that `config.pretrained` names start from.
        strategy: Overrides the strategy that the configuration names.

    Raises:
        ValueError: If the global batch size is not a multiple of the number of replicas, or the
            weights are not what `config.pretrained` asks for.
        RuntimeError: If the loss is no longer finite, data cannot be read or a checkpoint cannot be
            written.
        preemption.Preempted: If SIGTERM came; the state was saved.
    """
    if strategy is None:
        strategy = make_strategy(config.strategy)
    assert strategy is not None
    num_replicas = strategy.num_replicas_in_sync
    if config.global_batch_size % num_replicas:
        raise ValueError(
            "global_batch_size must be a multiple of the number of replicas. Received: "
            f"global_batch_size={config.global_batch_size}, replicas={num_replicas}"
        )
    with strategy.scope():
        model = two_tower.build(config)
        start_from(model, weights, config)
        embed = choose_embed(model, data.embeddings(split_dir), config)
        state = make_state(model, config)
    tokenizer = preprocess.Tokenizer(vocabulary, config.text)
    checkpoints = Checkpoints(
        checkpoint_dir,
        state,
        keep=config.keep_checkpoints,
        keep_every_steps=config.keep_every_steps,
    )
    first_step = checkpoints.restore_latest()
    is_chief, anyone = _is_chief(strategy), _agreement(strategy)
    _check_same_start(strategy, first_step)
    batches = iter(
        strategy.distribute_datasets_from_function(
            lambda context: data.training_pairs(
                split_dir,
                config,
                tokenizer,
                first_step=first_step,
                num_hosts=context.num_input_pipelines,
                host=context.input_pipeline_id,
                batch_size=context.get_per_replica_batch_size(config.global_batch_size),
            )
        )
    )
    train_step = make_train_step(model, state, config, strategy, embed)
    meter = progress.Meter(config.global_batch_size)
    final_loss = float("nan")
    with (
        progress.Report(
            config,
            first_step=first_step,
            log_dir=log_dir if is_chief else None,
            silent=not is_chief,
        ) as report,
        preemption.TerminationNotice() as notice,
    ):
        saved = time.monotonic()
        for number in range(first_step + 1, config.steps + 1):
            with meter:
                batch = _next(batches, split_dir)
            scalars = train_step(batch)
            meter.step_done()
            report.step_done()
            stop = anyone(notice.received)
            save = number == config.steps or number % config.checkpoint_steps == 0
            save |= number % (config.keep_every_steps or config.checkpoint_steps) == 0
            save |= stop or _is_late(saved, config.checkpoint_minutes)
            if save or number % config.log_steps == 0:
                values = {name: float(value) for name, value in scalars.items()}
                if values["skipped_steps"] > config.max_skipped_steps:
                    raise _not_finite(state, values, config, split_dir, checkpoint_dir)
                values["images_per_second"] = meter.images_per_second
                values["data_wait_fraction"] = meter.data_wait_fraction
                report.show(number, values)
                final_loss = values["loss"]
            if save:
                if is_chief:
                    checkpoints.save()
                saved = time.monotonic()
            if stop and number < config.steps:
                raise preemption.Preempted(number)
    for name, average in state.ema.items():
        state.parameters[name].assign(average)
    return TrainResult(
        model=model,
        tokenizer=tokenizer,
        first_step=first_step,
        images_per_second=meter.images_per_second,
        data_wait_fraction=meter.data_wait_fraction,
        final_loss=final_loss,
        is_chief=is_chief,
    )


def _next(batches, split_dir: str | Path):
    try:
        return next(batches)
    except tf.errors.OpError as error:
        raise data.unreadable(split_dir, error) from error


def _agreement(strategy: tf.distribute.Strategy) -> Callable[[bool], bool]:
    """Returns a function that says whether something holds on any worker, the same on all.

    A worker that stopped alone would leave the others waiting for it.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda holds: holds
    add = _sum_over_workers(strategy)
    return lambda holds: add([float(holds)])[0] > 0


def _check_same_start(strategy: tf.distribute.Strategy, first_step: int) -> None:
    """Raises on all workers if they do not go on from the same step."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    add = _sum_over_workers(strategy)
    count, total, squares = add([1.0, float(first_step), float(first_step) ** 2])
    if squares * count != total**2:
        raise RuntimeError(
            "All workers must go on from the same checkpoint; give them a folder that all see. "
            f"Received: step {first_step} here, {total / count:.1f} on average"
        )


def _sum_over_workers(strategy: tf.distribute.Strategy) -> Callable[[list[float]], np.ndarray]:
    def here(x):
        context = tf.distribute.get_replica_context()
        # A copy on the replica's own device.
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(x))

    @tf.function
    def add(x):
        return strategy.experimental_local_results(strategy.run(here, args=(x,)))[0]

    return lambda values: add(tf.constant(values, tf.float64)).numpy()


def _is_late(saved: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - saved >= 60.0 * minutes


def _not_finite(
    state: steps.TrainState,
    values: dict[str, float],
    config: TrainConfig,
    split_dir: str | Path,
    checkpoint_dir: str | Path,
) -> RuntimeError:
    """Returns the error of a run that is not finite; writes which records its step saw."""
    count, first = (int(x) for x in state.skipped.numpy())
    path = Path(checkpoint_dir) / f"not_finite_step_{first}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = data.batch_keys(split_dir, config, number=first)
    path.write_text(
        json.dumps({"step": first, "last_scalars": repr(values), "keys": keys}, indent=1)
    )
    return RuntimeError(
        f"The run is no longer finite. Received: {count} steps without a finite loss or gradient, "
        f"the first of them step {first}, whose records are named in {path}. Lower "
        "optimizer.learning_rate, raise optimizer.warmup_steps or allow more by max_skipped_steps."
    )


def start_from(model: two_tower.TwoTower, weights: Weights | None, config: TrainConfig) -> None:
    """Assigns the parameters that `config.pretrained` names.

    Raises:
        ValueError: If weights are given and not asked for, or the other way round, or do not fit.
    """
    if weights is None and config.pretrained:
        raise ValueError(
            "The recipe starts from weights, which must be given. "
            f"Received: pretrained={list(config.pretrained)}"
        )
    if weights is None:
        return
    if not config.pretrained:
        raise ValueError(
            "pretrained must name the parameters that start from the given weights, such as "
            'pretrained=["image/.*"]. Received: pretrained=[]'
        )
    variables = two_tower.named_variables(model)
    shapes = {name: tuple(value.shape) for name, value in variables.items()}
    for name, value in checkpoint.fitted(weights, shapes, config.pretrained).items():
        variables[name].assign(value)


def choose_embed(
    model: two_tower.TwoTower, embedded: dict | None, config: TrainConfig
) -> steps.Embed:
    """Returns how batches are embedded: the images live, or as the data holds them.

    Args:
        model: The model at its start.
        embedded: What `data.embeddings` says of the data.
        config: The configuration.

    Raises:
        ValueError: If the data holds embeddings of another image tower, or of one that is trained.
    """
    if embedded is None:
        return steps.embed_pixels
    trained = steps.trained_names(two_tower.named_parameters(model), config)
    if any(name.startswith("image/") for name in trained):
        raise ValueError(
            "Images that are embedded already need an image tower that is frozen by "
            f"optimizer.rates. Received: optimizer.rates={config.optimizer.rates}"
        )
    digest = export.image_digest(model)
    if digest != embedded["image_digest"]:
        raise ValueError(
            "The images were embedded by another image tower than the one given; embed them again "
            f"with `sigline embed`. Received: image_digest={embedded['image_digest'][:12]} in the "
            f"data, {digest[:12]} in the model"
        )
    return steps.embed_precomputed


def make_state(model: two_tower.TwoTower, config: TrainConfig) -> steps.TrainState:
    """Returns the state of a run before its first step as variables.

    Under a strategy, call it in the strategy's scope.
    """
    parameters = two_tower.named_variables(model)
    first = tf.VariableAggregation.ONLY_FIRST_REPLICA
    trained = {name: parameters[name] for name in steps.trained_names(parameters, config)}
    # A name without a factor of the decay is an error before the first step, too.
    optimizers.matched(config.optimizer.decays, trained)
    averaged = trained if config.optimizer.ema_decay is not None else {}
    return steps.TrainState(
        parameters,
        optimizers.make_slots(trained, config.optimizer),
        {name: tf.Variable(value, trainable=False) for name, value in averaged.items()},
        tf.Variable(tf.zeros((), tf.int64), trainable=False, aggregation=first),
        tf.Variable(tf.zeros((2,), tf.int64), trainable=False, aggregation=first),
    )


def make_train_step(
    model: two_tower.TwoTower,
    variables: steps.TrainState,
    config: TrainConfig,
    strategy: tf.distribute.Strategy,
    embed: steps.Embed = steps.embed_pixels,
) -> Callable[[tuple[tf.Tensor, tf.Tensor]], dict[str, tf.Tensor]]:
    """Returns the compiled step: takes a (distributed) batch, returns scalars to log."""

    def changing(state: steps.TrainState):
        trained = {name: state.parameters[name] for name in variables.slots}
        return tf.nest.flatten(state._replace(parameters=trained))

    compute = functools.partial(steps.forward_backward, model=model, config=config, embed=embed)
    if _compiles(config, strategy):
        # Only this part: XLA on CPU and GPU accepts neither variable writes nor collectives.
        compute = tf.function(compute, jit_compile=True)

    def replica_step(*inputs):
        state = tf.nest.map_structure(tf.convert_to_tensor, variables)
        exchange = collectives.exchange_for_context(config.loss.exchange)
        state, scalars = steps.train_step(
            state, inputs, config=config, exchange=exchange, compute=compute
        )
        context = tf.distribute.get_replica_context()
        context.merge_call(assign_everywhere, args=(changing(state),))
        return scalars

    def assign_everywhere(strategy, values):
        for variable, value in zip(changing(variables), values, strict=True):
            strategy.extended.update(
                variable, lambda v, new: v.assign(new), args=(value,), group=False
            )

    @tf.function
    def train_step(batch):
        scalars = strategy.run(replica_step, args=batch)
        return {name: strategy.experimental_local_results(v)[0] for name, v in scalars.items()}

    return train_step


def _compiles(config: TrainConfig, strategy: tf.distribute.Strategy) -> bool:
    """Whether the step asks for XLA itself; under TPUStrategy `strategy.run` does."""
    alone = strategy.num_replicas_in_sync == 1
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return False
    if config.jit_compile and not alone:
        raise ValueError(
            "jit_compile must be none or false under several CPU or GPU replicas: XLA does not "
            f"accept their collectives. Received: replicas={strategy.num_replicas_in_sync}"
        )
    if config.jit_compile is None:
        return alone and bool(tf.config.list_logical_devices("GPU"))
    return config.jit_compile
