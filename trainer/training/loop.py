"""The training loop: one compiled step, any `tf.distribute` strategy, exact resume."""

import functools
import json
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from sigline.schemas import atomic
from sigline.schemas.labels import LabelSet
from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import data, preprocess, usable
from sigline.trainer.inputs.repairs import Repairs
from sigline.trainer.inputs.resuming import Feed
from sigline.trainer.losses import collectives
from sigline.trainer.models import two_tower, xla_regions
from sigline.trainer.objectives import frozen
from sigline.trainer.training import preemption, progress, start, steps, strategies
from sigline.trainer.training.calls import Models
from sigline.trainer.training.checkpoints import Checkpoints, describe
from sigline.trainer.training.state import TrainState
from sigline.trainer.weights import inheritance
from sigline.trainer.weights.weight_folders import Weights


@dataclass(frozen=True)
class TrainResult:
    """What a finished run hands on.

    Attributes:
        model: The trained model; with the averages of its parameters, if the run keeps them.
        tokenizer: The vocabulary it was trained with; None for a model of images alone.
        first_step: The step that the run started or resumed at.
        images_per_second: Mean over the steps of this process, without the first, which compiles;
            0.0 where fewer than two steps were left to do.
        data_wait_fraction: Share of the time spent waiting for data.
        final_loss: Loss of the last logged step; NaN where no step was left to do.
        is_chief: Whether this process is the one of several workers that writes.
        initial_digest: Digest of the parameters that the run began with.
    """

    model: two_tower.TwoTower
    tokenizer: preprocess.Tokenizer | None
    first_step: int
    images_per_second: float
    data_wait_fraction: float
    final_loss: float
    is_chief: bool
    initial_digest: str


def train(
    config: TrainConfig,
    *,
    split_dir: data.Folders,
    vocabulary: bytes | None,
    checkpoint_dir: str | Path,
    log_dir: str | Path | None = None,
    weights: Weights | None = None,
    teachers: Mapping[str, Weights] | None = None,
    labels: LabelSet | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> TrainResult:
    """Trains a model, or finishes a run that was interrupted.

    Args:
        config: The configuration.
        split_dir: Folder with the training shards, or several to mix; see `DataConfig.mixture`.
        vocabulary: A serialized SentencePiece model; None for a model of images alone, or for that
            of the weights.
        checkpoint_dir: Folder of this run's checkpoints; if it holds one, training goes on there.
            Several workers must share it; the first one writes.
        log_dir: Folder for TensorBoard events; none are written if it is not given.
        weights: What the parameters that `config.pretrained` names start from.
        teachers: Weights of the frozen models that objectives ask.
        labels: Classes for teachers that tell classes by their texts.
        strategy: Overrides the strategy that the configuration names.

    Raises:
        ValueError: If the global batch size is not a multiple of the number of replicas, or the
            weights, their vocabulary or the teachers are not what the configuration asks for.
        RuntimeError: If the loss is no longer finite, data cannot be read or a checkpoint cannot be
            written.
        preemption.Preempted: If SIGTERM came; the state was saved.
    """
    if strategy is None:
        strategy = strategies.make_strategy(config.run.strategy)
    assert strategy is not None
    _check_divisible(config.global_batch_size, strategy.num_replicas_in_sync)
    vocabulary = inheritance.vocabulary(config, weights, vocabulary)
    tokenizer = start.make_tokenizer(vocabulary, config)
    embedded = data.embeddings(split_dir)
    with strategy.scope():
        model = two_tower.build(config)
        start.start_from(model, weights, config)
        initial_digest = start.digest(model)
        start.check_embedded_by(model, embedded, config)
        asked = frozen.make(teachers or {}, config, vocabulary=vocabulary, labels=labels)
        models = Models.of(
            config,
            model,
            tokenizer=tokenizer,
            frozen=asked,
            labels=labels,
            embedded=embedded is not None,
        )
        state = start.make_state(models)
    checkpoints = Checkpoints(
        checkpoint_dir,
        state,
        keep=config.run.keep_checkpoints,
        keep_every_steps=config.run.keep_every_steps,
    )
    first_step = checkpoints.restore_latest()
    if first_step > config.steps:
        raise ValueError(
            "steps must not be fewer than were trained already; give more, or another folder. "
            f"Received: steps={config.steps}, trained={first_step}, checkpoints={checkpoint_dir}"
        )
    is_chief, anyone = strategies.is_chief(strategy), strategies.agreement(strategy)
    strategies.check_same_start(strategy, first_step)
    if is_chief:
        described = Weights(
            config, {}, vocabulary, initial_digest, inheritance.tokenizer(config, weights)
        )
        # A run that resumes keeps the digest that it wrote when it began.
        initial_digest = describe(checkpoint_dir, described).initial_digest or initial_digest
    check = usable.Check(config, models.needs, embedded=embedded)
    repairs = Repairs(
        Path(checkpoint_dir) / "repaired", split_dir, config.run.max_damaged_records, check
    )

    open_from = functools.partial(_open_batches, split_dir, models, repairs, strategy)
    batches = Feed(
        split_dir,
        repairs,
        open_from,
        first_step=first_step,
        unusable=lambda number: usable.places(
            split_dir, config, check, number=number, replaced=repairs.replaced
        ),
    )
    train_step = make_train_step(models, state, strategy)
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
                batch = next(batches)
            if number == first_step + 1:
                _show(report, number, batch, tokenizer, strategy)
            scalars = train_step(batch, number)
            meter.step_done()
            report.step_done()
            stop = anyone(notice.received)
            save = number == config.steps or number % config.run.checkpoint_steps == 0
            save |= number % (config.run.keep_every_steps or config.run.checkpoint_steps) == 0
            save |= stop or _is_late(saved, config.run.checkpoint_minutes)
            if save or number % config.run.log_steps == 0:
                values = {name: float(value) for name, value in scalars.items()}
                if values["skipped_steps"] > config.run.max_skipped_steps:
                    first_keys = functools.partial(
                        data.batch_keys, split_dir, config, replaced=repairs.replaced
                    )
                    raise _not_finite(state, values, first_keys, checkpoint_dir)
                values["images_per_second"] = meter.images_per_second
                values["data_wait_fraction"] = meter.data_wait_fraction
                values["damaged_records"] = float(repairs.count)
                report.show(number, values)
                final_loss = values["loss"]
            if save:
                if is_chief:
                    checkpoints.save()
                saved = time.monotonic()
            if stop and number < config.steps:
                strategies.leave_together(strategy)
                raise preemption.Preempted(number)
    strategies.leave_together(strategy)
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
        initial_digest=initial_digest,
    )


def _check_divisible(global_batch_size: int, num_replicas: int) -> None:
    if global_batch_size % num_replicas:
        raise ValueError(
            "global_batch_size must be a multiple of the number of replicas. Received: "
            f"global_batch_size={global_batch_size}, replicas={num_replicas}"
        )


def _open_batches(
    split_dir: data.Folders,
    models: Models,
    repairs: Repairs,
    strategy: tf.distribute.Strategy,
    first_step: int,
) -> Iterator:
    """Returns the batches of a run from a step on, each replica's part on its device."""
    config, needs = models.config, models.needs

    def local(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return data.training_batches(
            split_dir,
            config,
            needs,
            first_step=first_step,
            replaced=repairs.replaced,
            num_hosts=context.num_input_pipelines,
            host=context.input_pipeline_id,
            batch_size=context.get_per_replica_batch_size(config.global_batch_size),
        )

    return iter(strategy.distribute_datasets_from_function(local))


def _show(report, number: int, batch, tokenizer, strategy: tf.distribute.Strategy) -> None:
    first = {n: strategy.experimental_local_results(x)[0] for n, x in batch.items()}
    texts = tokenizer.texts_of(first["text"][:8]) if "text" in first else []
    report.show_batch(number, first["image"], texts)


def _is_late(saved: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - saved >= 60.0 * minutes


def _not_finite(
    state: TrainState,
    values: dict[str, float],
    keys_of: Callable[..., list[str]],
    checkpoint_dir: str | Path,
) -> RuntimeError:
    """Returns the error of a run that is not finite; writes which records its step saw."""
    count, first = (int(x) for x in state.skipped.numpy())
    path = Path(checkpoint_dir) / f"not_finite_step_{first}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    incident = {"step": first, "last_scalars": repr(values), "keys": keys_of(number=first)}
    atomic.write_file(path, json.dumps(incident, indent=1))
    return RuntimeError(
        f"The run is no longer finite. Received: {count} steps without a finite loss or gradient, "
        f"the first of them step {first}, whose records are named in {path}. Lower "
        "optimizer.learning_rate, raise optimizer.warmup_steps, or allow more by "
        "run.max_skipped_steps."
    )


def make_train_step(
    models: Models, variables: TrainState, strategy: tf.distribute.Strategy
) -> Callable[[Any, int], dict[str, tf.Tensor]]:
    """Returns the compiled step: takes a (distributed) batch and the step's number, from one.

    It returns scalars to log. Each variant of the objectives is compiled when it first comes.
    """
    config, objectives = models.config, models.objectives

    def changing(state: TrainState):
        trained = {name: state.parameters[name] for name in variables.slots}
        return tf.nest.flatten(state._replace(parameters=trained))

    update = functools.partial(steps.apply_gradients, config=config)
    compiled = _compiled(config, strategy)
    if compiled != "none":
        # Compile the update apart: XLA on CPU and GPU accepts neither variable writes nor
        # collectives.
        update = tf.function(update, jit_compile=True, autograph=False)

    def assign_everywhere(strategy, values):
        for variable, value in zip(changing(variables), values, strict=True):
            strategy.extended.update(
                variable, lambda v, new: v.assign(new), args=(value,), group=False
            )

    @functools.cache
    def step_of(variant: Hashable):
        forward_backward = functools.partial(steps.forward_backward, models=models, variant=variant)

        def compute(*inputs):
            with xla_regions.fusing(compiled == "parts"):
                return forward_backward(*inputs)

        if compiled == "whole":
            compute = tf.function(compute, jit_compile=True, autograph=False)

        def replica_step(inputs):
            state = tf.nest.map_structure(tf.convert_to_tensor, variables)
            values = {name: dict(item.variables) for name, item in models.frozen.items()}
            state, scalars = steps.train_step(
                state,
                inputs,
                config=config,
                exchange=collectives.exchange_for_context(config.run.exchange),
                compute=compute,
                update=update,
                objectives=objectives,
                frozen_values=tf.nest.map_structure(tf.convert_to_tensor, values),
            )
            context = tf.distribute.get_replica_context()
            context.merge_call(assign_everywhere, args=(changing(state),))
            return scalars

        @tf.function(autograph=False)
        def train_step(batch):
            scalars = strategy.run(replica_step, args=(batch,))
            return {n: strategy.experimental_local_results(v)[0] for n, v in scalars.items()}

        return train_step

    def train_step(batch, number: int) -> dict[str, tf.Tensor]:
        return step_of(steps.variant(objectives, config.seed, number))(batch)

    return train_step


def _compiled(config: TrainConfig, strategy: tf.distribute.Strategy) -> str:
    """What of the step asks for XLA: `whole`, `parts` or `none`; on a TPU `strategy.run` asks."""
    alone = strategy.num_replicas_in_sync == 1
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "none"
    if config.run.jit_compile and not alone:
        raise ValueError(
            "run.jit_compile must be none or false under several CPU or GPU replicas: XLA does not "
            f"accept their collectives. Received: replicas={strategy.num_replicas_in_sync}"
        )
    if config.run.jit_compile is None:
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        return "whole" if alone and on_gpu else "parts"
    return "whole" if config.run.jit_compile else "none"
