"""The training step as a strategy runs it: compiled, on variables."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from sigline.trainer.config import TrainConfig
from sigline.trainer.losses import collectives
from sigline.trainer.models import xla_regions
from sigline.trainer.objectives.base import Tensors
from sigline.trainer.training import steps, variants
from sigline.trainer.training.calls import Models, Variant
from sigline.trainer.training.state import TrainState


def make_train_step(
    models: Models, variables: TrainState, strategy: tf.distribute.Strategy
) -> Callable[[Any, int], dict[str, tf.Tensor]]:
    """Returns the compiled step: takes a (distributed) batch and the step's number, from one.

    It returns scalars to log. Each variant of a step is compiled when it first comes.
    """
    config = models.config
    update = functools.partial(steps.apply_gradients, config=config)
    compiled = _compiled(config, strategy)
    if compiled != "none":
        # Compile the update apart: XLA on CPU and GPU accepts neither variable writes nor
        # collectives.
        update = tf.function(update, jit_compile=True, autograph=False)

    @functools.cache
    def step_of(variant: Variant):
        replica_step = _replica_step(models, variables, variant, compiled, update)

        @tf.function(autograph=False)
        def train_step(batch):
            scalars = strategy.run(replica_step, args=(batch,))
            return {n: strategy.experimental_local_results(v)[0] for n, v in scalars.items()}

        return train_step

    def train_step(batch, number: int) -> dict[str, tf.Tensor]:
        variant = variants.of_step(models, number)
        scalars = step_of(variant)(batch)
        return scalars | variants.loss_by_variant(models, variant, scalars)

    return train_step


def _replica_step(
    models: Models,
    variables: TrainState,
    variant: Variant,
    compiled: str,
    update: Callable[..., TrainState],
) -> Callable[[Any], Tensors]:
    """Returns what a replica does in a step: it computes on values, then assigns the variables.

    Args:
        models: What is trained.
        variables: The state, which is assigned on all replicas.
        variant: Which variant the step is.
        compiled: What asks for XLA, as `_compiled` returns.
        update: `steps.apply_gradients` with its keywords bound, compiled or not.
    """
    config = models.config
    forward_backward = functools.partial(steps.forward_backward, models=models, variant=variant)

    def compute(*inputs):
        with xla_regions.fusing(compiled == "parts"):
            return forward_backward(*inputs)

    if compiled == "whole":
        compute = tf.function(compute, jit_compile=True, autograph=False)

    def changing(state: TrainState):
        trained = {name: state.parameters[name] for name in variables.slots}
        return tf.nest.flatten(state._replace(parameters=trained))

    def assign_everywhere(strategy, values):
        for variable, value in zip(changing(variables), values, strict=True):
            strategy.extended.update(
                variable, lambda v, new: v.assign(new), args=(value,), group=False
            )

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
            objectives=models.objectives,
            frozen_values=tf.nest.map_structure(tf.convert_to_tensor, values),
        )
        context = tf.distribute.get_replica_context()
        context.merge_call(assign_everywhere, args=(changing(state),))
        return scalars

    return replica_step


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
