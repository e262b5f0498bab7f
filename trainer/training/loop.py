"""The training loop: one compiled step, any `tf.distribute` strategy, exact resume."""

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from sigline.schemas import atomic
from sigline.schemas.labels import LabelSet
from sigline.trainer.config import TrainConfig
from sigline.trainer.inputs import data, preprocess, shards, usable
from sigline.trainer.inputs.repairs import Repairs
from sigline.trainer.inputs.resuming import Feed
from sigline.trainer.models import two_tower
from sigline.trainer.objectives import frozen
from sigline.trainer.training import (
    attention_monitor,
    memory,
    preemption,
    progress,
    start,
    strategies,
    variants,
)
from sigline.trainer.training.calls import Models
from sigline.trainer.training.checkpoints import Checkpoints, describe
from sigline.trainer.training.state import TrainState
from sigline.trainer.training.train_step import make_train_step
from sigline.trainer.weights import inheritance
from sigline.trainer.weights.model_weights import Weights


@dataclass(frozen=True)
class TrainResult:
    """What a finished run hands on.

    Attributes:
        model: The trained model; with the averages of its parameters, if the run keeps them.
        tokenizer: The vocabulary it was trained with; None for a model of images alone.
        first_step: The step that the run started or resumed at.
        images_per_second: Mean over the steps of this process, without those that compile; 0.0
            where no others were left to do.
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
    split_dir: shards.Folders,
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
        ValueError: If the global batch size is not a multiple of the number of replicas, the state
            does not fit on a device, or the weights, their vocabulary or the teachers are not what
            the configuration asks for.
        RuntimeError: If the loss is no longer finite, data cannot be read or a checkpoint cannot be
            written.
        preemption.Preempted: If SIGTERM came; the state was saved.
    """
    if strategy is None:
        strategy = strategies.make_strategy(config.run.strategy)
    assert strategy is not None
    _check_divisible(config.global_batch_size, strategy.num_replicas_in_sync)
    memory.check_fits(config, strategy)
    vocabulary = inheritance.vocabulary(config, weights, vocabulary)
    tokenizer = start.make_tokenizer(vocabulary, config)
    embedded = shards.embeddings(split_dir)
    with strategy.scope():
        models, initial_digest = _make_models(
            config,
            weights,
            teachers or {},
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            labels=labels,
            embedded=embedded,
        )
        state = start.make_state(models)
    run = _Run(models, state, strategy, split_dir, Path(checkpoint_dir), tokenizer, embedded)
    first_step = run.resume()
    if run.is_chief:
        described = Weights(
            config, {}, vocabulary, initial_digest, inheritance.tokenizer(config, weights)
        )
        # A run that resumes keeps the digest that it wrote when it began.
        initial_digest = describe(checkpoint_dir, described).initial_digest or initial_digest
    meter = progress.Meter(config.global_batch_size)
    final_loss = run.do_steps(first_step, meter, log_dir)
    strategies.leave_together(strategy)
    for name, average in state.ema.items():
        state.parameters[name].assign(average)
    return TrainResult(
        model=models.model,
        tokenizer=tokenizer,
        first_step=first_step,
        images_per_second=meter.images_per_second,
        data_wait_fraction=meter.data_wait_fraction,
        final_loss=final_loss,
        is_chief=run.is_chief,
        initial_digest=initial_digest,
    )


def _make_models(
    config: TrainConfig,
    weights: Weights | None,
    teachers: Mapping[str, Weights],
    *,
    tokenizer: preprocess.Tokenizer | None,
    vocabulary: bytes | None,
    labels: LabelSet | None,
    embedded: dict | None,
) -> tuple[Models, str]:
    """Returns what the run computes with, and the digest of its parameters, in a strategy's scope.

    Args:
        config: The configuration.
        weights: What pretrained parameters start from.
        teachers: Weights of the frozen models.
        tokenizer: The run's.
        vocabulary: The tokenizer's.
        labels: Classes for teachers that tell classes by their texts.
        embedded: What embedded the images, as `shards.embeddings` says; None for pictures.
    """
    model = two_tower.build(config)
    start.start_from(model, weights, config)
    digest = start.digest(model)
    start.check_embedded_by(model, embedded, config)
    models = Models.of(
        config,
        model,
        tokenizer=tokenizer,
        frozen=frozen.make(teachers, config, vocabulary=vocabulary, labels=labels),
        labels=labels,
        embedded=embedded is not None,
    )
    return models, digest


class _Run:
    """A run from its first step to its last, with its data and checkpoints."""

    def __init__(
        self,
        models: Models,
        state: TrainState,
        strategy: tf.distribute.Strategy,
        split_dir: shards.Folders,
        checkpoint_dir: Path,
        tokenizer: preprocess.Tokenizer | None,
        embedded: dict | None,
    ):
        self._models = models
        self._config = config = models.config
        self._state = state
        self._strategy = strategy
        self._split_dir = split_dir
        self._checkpoint_dir = checkpoint_dir
        self._tokenizer = tokenizer
        self._checkpoints = Checkpoints(
            checkpoint_dir,
            state,
            keep=config.run.keep_checkpoints,
            keep_every_steps=config.run.keep_every_steps,
        )
        self._check = usable.Check(config, models.needs, embedded=embedded)
        self._repairs = Repairs(
            checkpoint_dir / "repaired", split_dir, config.run.max_damaged_records, self._check
        )
        self._anyone = strategies.agreement(strategy)
        self.is_chief = strategies.is_chief(strategy)

    def resume(self) -> int:
        """Restores the last checkpoint and returns the number of steps done.

        Raises:
            ValueError: If they are more than the configuration asks for.
        """
        first_step = self._checkpoints.restore_latest()
        if first_step > self._config.steps:
            raise ValueError(
                "steps must not be fewer than were trained already; give more, or another folder. "
                f"Received: steps={self._config.steps}, trained={first_step}, "
                f"checkpoints={self._checkpoint_dir}"
            )
        strategies.check_same_start(self._strategy, first_step)
        return first_step

    def do_steps(self, first_step: int, meter: progress.Meter, log_dir: str | Path | None) -> float:
        """Does the steps that are left; returns the loss of the last logged one, NaN without any.

        Args:
            first_step: Steps done so far.
            meter: Times the steps.
            log_dir: Folder for TensorBoard events; None to write none.

        Raises:
            RuntimeError: If the loss is no longer finite, data cannot be read or a checkpoint
                cannot be written.
            preemption.Preempted: If SIGTERM came; the state was saved.
        """
        with (
            progress.Report(
                self._config,
                first_step=first_step,
                log_dir=log_dir if self.is_chief else None,
                silent=not self.is_chief,
            ) as report,
            preemption.TerminationNotice() as notice,
        ):
            return self._do_steps(first_step, meter, report, notice)

    def _do_steps(
        self,
        first_step: int,
        meter: progress.Meter,
        report: progress.Report,
        notice: preemption.TerminationNotice,
    ) -> float:
        config = self._config
        batches = self._batches(first_step)
        train_step = make_train_step(self._models, self._state, self._strategy)
        monitor = None
        if config.run.monitor_attention:
            monitor = attention_monitor.make_monitor(self._models, self._strategy)
        final_loss, saved = float("nan"), time.monotonic()
        for number in range(first_step + 1, config.steps + 1):
            with meter:
                batch = next(batches)
            if number == first_step + 1:
                self._show(report, number, batch)
            scalars = train_step(batch, number)
            meter.step_done(variants.of_step(self._models, number))
            report.step_done()
            stop = self._anyone(notice.received)
            save = stop or _is_saved(number, config)
            save |= _is_late(saved, config.run.checkpoint_minutes)
            if save or number % config.run.log_steps == 0:
                values = self._finite(scalars)
                values["images_per_second"] = meter.images_per_second
                values["data_wait_fraction"] = meter.data_wait_fraction
                values["damaged_records"] = float(self._repairs.count)
                if monitor is not None:
                    with meter.paused():
                        values |= monitor(batch)
                report.show(number, values)
                final_loss = values["loss"]
            if save:
                if self.is_chief:
                    self._checkpoints.save()
                saved = time.monotonic()
            if stop and number < config.steps:
                strategies.leave_together(self._strategy)
                raise preemption.Preempted(number)
        return final_loss

    def _batches(self, first_step: int) -> Feed:
        def unusable(number: int) -> Any:
            return usable.places(
                self._split_dir,
                self._config,
                self._check,
                number=number,
                replaced=self._repairs.replaced,
            )

        open_from = functools.partial(
            _open_batches, self._split_dir, self._models, self._repairs, self._strategy
        )
        return Feed(
            self._split_dir, self._repairs, open_from, first_step=first_step, unusable=unusable
        )

    def _show(self, report: progress.Report, number: int, batch: Any) -> None:
        """Shows some images and texts of a batch."""
        local = self._strategy.experimental_local_results
        first = {name: local(value)[0] for name, value in batch.items()}
        texts = []
        if "text" in first and self._tokenizer is not None:
            texts = self._tokenizer.texts_of(first["text"][:8])
        report.show_batch(number, first["image"], texts)

    def _finite(self, scalars: Mapping[str, tf.Tensor]) -> dict[str, float]:
        """Returns the values of scalars; raises if too many steps were not finite."""
        values = {name: float(value) for name, value in scalars.items()}
        if values["skipped_steps"] > self._config.run.max_skipped_steps:
            keys_of = functools.partial(
                data.batch_keys, self._split_dir, self._config, replaced=self._repairs.replaced
            )
            raise _not_finite(self._state, values, keys_of, self._checkpoint_dir)
        return values


def _check_divisible(global_batch_size: int, num_replicas: int) -> None:
    if global_batch_size % num_replicas:
        raise ValueError(
            "global_batch_size must be a multiple of the number of replicas. Received: "
            f"global_batch_size={global_batch_size}, replicas={num_replicas}"
        )


def _open_batches(
    split_dir: shards.Folders,
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


def _is_saved(number: int, config: TrainConfig) -> bool:
    """Returns whether a step is one of those whose state is saved."""
    every, kept = config.run.checkpoint_steps, config.run.keep_every_steps
    return number == config.steps or number % every == 0 or number % (kept or every) == 0


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
