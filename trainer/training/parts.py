"""Microbatches: a batch in parts, one after the other, to the gradients of the whole batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from sigline.trainer.objectives.base import LOSS, Objective, Tensors

# An outcome of a step without its gradients; see `steps.StepOutcome`.
Outcome = Any


def forward_backward(
    inputs: Tensors,
    trained: Tensors,
    objectives: Sequence[Objective],
    call: Callable[[Tensors, Any], Any],
    say: Callable[[Sequence[Objective], Any], dict[str, Tensors]],
    learn: Callable[[Sequence[Objective], Mapping[str, Tensors], Any], Outcome],
    *,
    num_parts: int,
) -> tuple[Outcome, dict[str, tf.Tensor | None]]:
    """Returns the outcome of the whole batch and its gradients, computing a part at a time.

    For objectives over pairs everything is embedded, part by part, without keeping anything; the
    loss gives the gradients of the embeddings; then each part is embedded again and its gradients
    are followed to the parameters. Objectives over examples have their loss in that second pass
    alone, part by part.

    Args:
        inputs: This replica's part of the batch.
        trained: The parameters that get gradients, by name.
        objectives: What is learnt.
        call: Makes what objectives are asked with, of examples and the number of the part.
        say: Returns the outputs of objectives, by name.
        learn: Returns the outcome of objectives' outputs.
        num_parts: How many parts.

    Returns:
        The outcome, and gradients by parameter; None where no loss depends on one.

    Raises:
        ValueError: If the parts would not be equal.

    Source: arXiv 2101.06983 (GradCache).
    """
    parts = tf.nest.map_structure(lambda x: _split(x, num_parts), inputs)
    pairs = [item for item in objectives if item.over == "pairs"]
    examples = [item for item in objectives if item.over == "examples"]

    def part_of(number: Any) -> Any:
        return call(tf.nest.map_structure(lambda x: x[number], parts), number)

    @tf.autograph.experimental.do_not_convert
    def say_part(number: tf.Tensor) -> dict[str, Tensors]:
        return say(pairs, part_of(number))

    @tf.autograph.experimental.do_not_convert
    def learn_part(number: tf.Tensor) -> Outcome:
        shared = part_of(number)
        return learn(examples, say(examples, shared), shared)

    outcome, slopes = None, {}
    gradients: Any = {name: None for name in trained}
    if pairs:
        # The first pass runs without a tape, so that it keeps outputs but no activations.
        specs = _specs(say_part)
        stacked = tf.map_fn(
            say_part, tf.range(num_parts), fn_output_signature=specs, parallel_iterations=1
        )
        pair_outputs = tf.nest.map_structure(_merged, stacked, specs)
        with tf.GradientTape() as tape:
            # The loss reads some parameters itself, such as the temperature; their direct gradients
            # are found here.
            tape.watch((pair_outputs, trained))
            outcome = learn(pairs, pair_outputs, call(inputs, 0))
        slopes_and_gradients: Any = tape.gradient(outcome.shares[LOSS], (pair_outputs, trained))
        slopes, gradients = slopes_and_gradients
        # Outputs that no loss reads, such as those of frozen models, have no gradient.
        slopes = {
            (objective, name): _split(value, num_parts)
            for objective, outputs in slopes.items()
            for name, value in outputs.items()
            if value is not None
        }
    connected: set[str] = set()

    @tf.autograph.experimental.do_not_convert
    def add_part(number: tf.Tensor, sums: Any, learnt: Any) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(trained)
            shared = part_of(number)
            pair_outputs = say(pairs, shared)
            # The second pass runs a part again under a tape. The chain rule goes on from the
            # gradients of its outputs.
            targets = [pair_outputs[objective][name] for objective, name in slopes]
            upstream = [value[number] for value in slopes.values()]
            if examples:
                of_part = learn(examples, say(examples, shared), shared)
                targets.append(of_part.shares[LOSS])
                # The loss of the whole batch is the sum of the shares of its parts.
                upstream.append(tf.ones_like(of_part.shares[LOSS]))
                learnt = tf.nest.map_structure(tf.add, learnt, of_part)
        part_gradients = tape.gradient(targets, trained, output_gradients=upstream)
        # The names are collected while the body is traced, since the loop returns a sum for every
        # parameter, if only of zeros.
        connected.update(name for name, value in part_gradients.items() if value is not None)
        added = {
            name: total if part_gradients[name] is None else total + part_gradients[name]
            for name, total in sums.items()
        }
        return number + 1, added, learnt

    nothing: Any = ()
    if examples:
        nothing = tf.nest.map_structure(lambda x: tf.zeros(x.shape, x.dtype), _specs(learn_part))
    sums: Any
    learnt: Any
    _, sums, learnt = tf.while_loop(
        lambda number, *_: number < num_parts,
        add_part,
        (tf.constant(0), {name: tf.zeros_like(value) for name, value in trained.items()}, nothing),
        parallel_iterations=1,
        maximum_iterations=num_parts,
    )
    if examples:
        # Shares of the loss add up; means are averaged, since the parts are of equal size.
        means = {name: value / num_parts for name, value in learnt.means.items()}
        outcome = _added(outcome, learnt._replace(means=means))
    # The whole gradient: through the outputs and direct. Parameters that neither reaches keep None,
    # so that the caller can refuse them.
    for name in connected:
        direct = gradients[name]
        gradients[name] = sums[name] if direct is None else sums[name] + direct
    return outcome, gradients


def _added(outcome: Outcome | None, more: Outcome) -> Outcome:
    """Returns the outcome of objectives over pairs and those over examples together."""
    if outcome is None:
        return more
    loss = outcome.shares[LOSS] + more.shares[LOSS]
    return outcome._replace(
        shares={**outcome.shares, **more.shares, LOSS: loss},
        means={**outcome.means, **more.means},
        statistics={**outcome.statistics, **more.statistics},
    )


def _specs(compute: Callable[[tf.Tensor], Any]) -> Any:
    """Returns what comes out of a part, which loops have to know before they run."""
    # The function is traced for its output shapes and never run.
    traced = tf.function(compute, autograph=False)
    outputs = traced.get_concrete_function(tf.TensorSpec((), tf.int32)).structured_outputs
    return tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), outputs)


def _merged(stacked: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """Undoes `_split` of what the parts gave."""
    num_parts, rows = stacked.shape[0], spec.shape[0]
    rows = None if num_parts is None or rows is None else num_parts * rows
    return tf.ensure_shape(tf.reshape(stacked, (-1, *spec.shape[1:])), (rows, *spec.shape[1:]))


def _split(x: Any, num_parts: int) -> tf.Tensor:
    """Cuts the leading axis into equal parts."""
    size = x.shape[0]
    if size is not None and size % num_parts:
        raise ValueError(
            "microbatches must divide the batch of a replica. "
            f"Received: microbatches={num_parts}, batch={size}"
        )
    rows = -1 if size is None else size // num_parts
    return tf.reshape(x, (num_parts, rows, *x.shape[1:]))
