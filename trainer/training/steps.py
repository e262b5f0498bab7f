"""One training step as a pure function of tensors, the same on every device.

The loop runs it on variables under a strategy. Since it touches no variable itself, it can also be
compiled ahead of time for a device that is not there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from sigline.trainer.config import TrainConfig
from sigline.trainer.losses.collectives import Exchange, exchange_for_context
from sigline.trainer.models.two_tower import named_parameters
from sigline.trainer.objectives import making
from sigline.trainer.objectives.base import LOSS, Objective, Outcome, Tensors
from sigline.trainer.training import mixup, optimizers, parts
from sigline.trainer.training.calls import (
    DEFAULT,
    ModelCall,
    Models,
    Seeds,
    Variant,
    mixup_seed,
)
from sigline.trainer.training.state import TrainState, trained_names


class StepOutcome(NamedTuple):
    """The outcome of a step on one replica's part of the batch.

    Attributes:
        shares: Scalars whose sum over replicas is that of the global batch, among them `loss`.
        means: Scalars to be averaged over replicas.
        gradients: The replica's share of the gradient, by parameter.
        statistics: To be summed over replicas, by objective; see `Objective.next_state`.
    """

    shares: Tensors
    means: Tensors
    gradients: Tensors
    statistics: Mapping[str, Tensors]


def forward_backward(
    parameters: Tensors,
    inputs: Tensors,
    step: tf.Tensor,
    frozen_values: Mapping[str, Tensors] | None = None,
    extras: Mapping[str, Tensors] | None = None,
    *,
    models: Models,
    exchange: Exchange | None = None,
    variant: Variant = DEFAULT,
) -> StepOutcome:
    """Returns loss and gradients of one replica's part of the batch.

    Args:
        parameters: Values to use in place of the model's own, by their names in `named_parameters`,
            and of the objectives' layers; those of a tower that no objective uses may be left out.
        inputs: What `models.needs` says.
        step: Scalar, steps done; decides what is drawn at random.
        frozen_values: Values of the frozen models' variables, by model.
        extras: What objectives keep without a gradient, by objective.
        models: Say what to compute; their own values are not read.
        exchange: How replicas meet; by default as the configuration says.
        variant: What the step is one of; see `variants.of_step`.
    """
    config, objectives = models.config, models.objectives
    if exchange is None:
        exchange = exchange_for_context(config.run.exchange)
    trained = {name: parameters[name] for name in trained_names(parameters, config)}
    seeds = Seeds.of(config, trained, step, exchange)
    inputs = _with_targets(inputs, models, step)
    counts = {
        item.name: exchange.sum(item.count(inputs))
        for item in objectives
        if item.over == "examples"
    }

    def call(examples: Tensors, number: int | tf.Tensor) -> ModelCall:
        return ModelCall(
            models,
            examples,
            parameters=parameters,
            frozen_values=frozen_values or {},
            step=step,
            seeds=seeds.part(number),
            exchange=exchange,
            variant=variant,
        )

    asked = _Objectives(models, parameters, counts, extras or {})
    if config.microbatches == 1:
        with tf.GradientTape() as tape:
            tape.watch(trained)
            shared = call(inputs, 0)
            outcome = asked.learn(objectives, asked.say(objectives, shared), shared)
        gradients: Any = tape.gradient(outcome.shares[LOSS], trained)
    else:
        outcome, gradients = parts.forward_backward(
            inputs, trained, objectives, call, asked.say, asked.learn, num_parts=config.microbatches
        )
    lost = [name for name, value in gradients.items() if value is None]
    if lost:
        raise RuntimeError(
            f"The loss does not depend on {', '.join(lost)}. Freeze them by optimizer.rates."
        )
    # The gradient of the token table comes as slices.
    dense = {name: tf.convert_to_tensor(value) for name, value in gradients.items()}
    return _with_short_names(outcome, objectives)._replace(gradients=dense)


class _Objectives:
    """Asks objectives for outputs and losses, with values in place of the variables' own."""

    def __init__(
        self,
        models: Models,
        parameters: Tensors,
        counts: Tensors,
        extras: Mapping[str, Tensors],
    ):
        """Takes what is the same for all parts of a batch.

        Args:
            models: Say what to compute.
            parameters: Values by name.
            counts: How many examples of the global batch count, by objective over examples.
            extras: What objectives keep without a gradient, by objective.
        """
        variables = named_parameters(models.model) | making.named_parameters(models.objectives)
        self._mapping = [(variables[name], value) for name, value in parameters.items()]
        self._is_one_of_several = len(models.objectives) > 1
        self._counts = counts
        self._extras = extras

    def _own(self, shared: ModelCall, item: Objective) -> ModelCall:
        return shared.of(self._counts.get(item.name), self._extras.get(item.name, {}))

    def say(self, asked: Sequence[Objective], shared: ModelCall) -> dict[str, Tensors]:
        """Returns the outputs of objectives, by name."""
        with keras.StatelessScope(state_mapping=self._mapping):
            return {item.name: item.outputs(self._own(shared, item)) for item in asked}

    def learn(
        self, asked: Sequence[Objective], outputs: Mapping[str, Tensors], shared: ModelCall
    ) -> StepOutcome:
        """Returns the outcome of objectives' outputs, without gradients."""
        with keras.StatelessScope(state_mapping=self._mapping):
            outcomes = [item.loss(outputs[item.name], self._own(shared, item)) for item in asked]
        return _together(asked, outcomes, listed=self._is_one_of_several)


def _with_targets(inputs: Tensors, models: Models, step: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the batch with the objectives' dense targets, mixed up if the configuration says."""
    targets: dict[str, tf.Tensor] = {}
    for objective in models.objectives:
        targets |= objective.targets(inputs)
    inputs, concentration = {**inputs, **targets}, models.config.data.mixup
    if not concentration:
        return inputs
    return mixup.mixed_up(
        inputs,
        {*models.needs.images, *targets},
        concentration=concentration,
        seed=mixup_seed(models.config, step),
    )


def _together(
    objectives: Sequence[Objective], outcomes: Sequence[Outcome], *, listed: bool
) -> StepOutcome:
    """Returns the weighted sum of losses and all scalars, without gradients.

    Args:
        objectives: What the outcomes are of.
        outcomes: One of each.
        listed: Whether each loss is a scalar, too, without its weight.

    Returns:
        The scalars have full names, `OBJECTIVE/NAME`: others of the run may be asked apart from
        these, and have scalars of the same names.
    """
    shares: dict[str, tf.Tensor] = {}
    means: dict[str, tf.Tensor] = {}
    statistics, weighted = {}, []
    for objective, outcome in zip(objectives, outcomes, strict=True):
        if outcome.statistics:
            statistics[objective.name] = outcome.statistics
        loss = outcome.shares[LOSS]
        weighted.append(objective.weight * loss)
        if listed:
            shares[f"{LOSS}/{objective.name}"] = loss
        for values, known in ((outcome.shares, shares), (outcome.means, means)):
            for name, value in values.items():
                if name != LOSS:
                    known[f"{objective.name}/{name}"] = value
    return StepOutcome({LOSS: tf.add_n(weighted)} | shares, means, {}, statistics)


def _with_short_names(outcome: StepOutcome, objectives: Sequence[Objective]) -> StepOutcome:
    """Takes the objective from the name of each scalar, unless one before has such a scalar."""
    losses = (LOSS, *(f"{LOSS}/{item.name}" for item in objectives))
    shares = {name: outcome.shares[name] for name in losses if name in outcome.shares}
    means: dict[str, tf.Tensor] = {}
    for objective in objectives:
        prefix = f"{objective.name}/"
        for values, known in ((outcome.shares, shares), (outcome.means, means)):
            for full_name, value in values.items():
                if full_name.startswith(prefix):
                    name = full_name.removeprefix(prefix)
                    is_free = name not in shares and name not in means
                    known[name if is_free else full_name] = value
    return outcome._replace(shares=shares, means=means)


def train_step(
    state: TrainState,
    inputs: Tensors,
    *,
    config: TrainConfig,
    exchange: Exchange,
    compute: Callable[..., StepOutcome],
    update: Callable[..., TrainState],
    objectives: Sequence[Objective] = (),
    frozen_values: Mapping[str, Tensors] | None = None,
) -> tuple[TrainState, Tensors]:
    """Returns the state after one step, equal on all replicas, and scalars to log.

    Gradients are summed over replicas, then clipped, then applied: clipping before the sum, as
    Keras optimizers do, depends on the number of replicas.

    Args:
        state: The state before.
        inputs: This replica's part of the batch.
        config: The configuration.
        exchange: How replicas meet.
        compute: `forward_backward` with its keywords bound, compiled or not.
        update: `apply_gradients` with its keywords bound, compiled or not.
        objectives: What is learnt, for what it keeps without a gradient.
        frozen_values: Values of the frozen models' variables, by model.
    """
    outcome = compute(state.parameters, inputs, state.step, frozen_values or {}, state.extras)
    names, logged = list(outcome.gradients), {**outcome.shares, **outcome.means}
    summed = exchange.sum(
        (
            list(logged.values()),
            list(outcome.gradients.values()),
            tf.nest.flatten(outcome.statistics),
        )
    )
    scalars = dict(zip(logged, summed[0], strict=True))
    scalars |= {name: scalars[name] / exchange.num_replicas for name in outcome.means}
    norm = tf.linalg.global_norm(summed[1])
    finite = tf.math.is_finite(scalars["loss"]) & tf.math.is_finite(norm)
    changing = state._replace(parameters={name: state.parameters[name] for name in names})
    changed = update(changing, dict(zip(names, summed[1], strict=True)), norm, finite)
    if "bias" in state.parameters:
        scalars["temperature"] = tf.exp(state.parameters["log_temperature"])
        scalars["bias"] = state.parameters["bias"]
    scalars |= {
        "gradient_norm": norm,
        "learning_rate": _factor(state.step, config) * config.optimizer.learning_rate,
        "skipped_steps": tf.cast(changed.skipped[0], tf.float32),
    }
    changed = changed._replace(parameters={**state.parameters, **changed.parameters})
    statistics = tf.nest.pack_sequence_as(outcome.statistics, summed[2])
    extras = _next_extras(state.extras, statistics, changed.parameters, objectives)
    kept = tf.nest.map_structure(lambda new, old: tf.where(finite, new, old), extras, state.extras)
    return changed._replace(extras=kept), scalars


def _next_extras(
    extras: Mapping[str, Tensors],
    statistics: Mapping[str, Tensors],
    parameters: Tensors,
    objectives: Sequence[Objective],
) -> dict[str, Tensors]:
    return {
        item.name: item.next_state(extras[item.name], statistics.get(item.name, {}), parameters)
        for item in objectives
        if item.name in extras
    }


def _factor(step: tf.Tensor, config: TrainConfig) -> tf.Tensor:
    return optimizers.schedule(step, config=config.optimizer, total_steps=config.steps)


def apply_gradients(
    state: TrainState,
    gradients: Tensors,
    norm: tf.Tensor,
    finite: tf.Tensor,
    *,
    config: TrainConfig,
) -> TrainState:
    """Returns the state after the gradients are applied.

    Args:
        state: The state before; of the parameters only those that are trained.
        gradients: Of each of them, summed over replicas.
        norm: Their joint norm.
        finite: Whether loss and norm are finite; if not, nothing changes but the counts.
        config: The configuration.
    """
    gradients = optimizers.clip_by_global_norm(gradients, norm, config.optimizer.clip_norm)
    update = optimizers.make_update(
        _factor(state.step, config), state.step, config=config.optimizer
    )
    rates = optimizers.matched(config.optimizer.rates, gradients)
    decays = optimizers.matched(config.optimizer.decays, gradients)
    shapes = optimizers.shapes({n: x.shape for n, x in gradients.items()}, config)
    parameters, slots, ema = {}, {}, {}
    for name, gradient in gradients.items():
        parameters[name], slots[name] = update(
            state.parameters[name],
            state.slots[name],
            gradient,
            rate=rates[name],
            decay=decays[name],
            shape=shapes[name],
        )
    kept = tf.constant(1.0 - (config.optimizer.ema_decay or 0.0))
    for name, average in state.ema.items():
        ema[name] = average + kept * (parameters[name] - average)
    # A step that is not finite changes nothing, so that no later one is lost, too.
    parameters, slots, ema = tf.nest.map_structure(
        lambda new, old: tf.where(finite, new, old),
        (parameters, slots, ema),
        (dict(state.parameters), dict(state.slots), dict(state.ema)),
    )
    skipped = _count_skipped(state.skipped, finite, state.step + 1)
    return TrainState(parameters, slots, ema, state.step + 1, skipped, state.extras)


def _count_skipped(skipped: tf.Tensor, finite: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    count = skipped[0] + tf.cast(tf.logical_not(finite), tf.int64)
    first = tf.where((skipped[0] == 0) & (count > 0), number, skipped[1])
    return tf.stack([count, first])
