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
    batch = _Microbatches(inputs, objectives, call, say, learn, num_parts)
    outcome, slopes = None, {}
    gradients: dict[str, tf.Tensor | None] = dict.fromkeys(trained)
    if batch.pairs:
        outcome, slopes, gradients = batch.loss_of_pairs(trained)
    sums, of_examples = batch.add_parts(trained, slopes)
    if of_examples is not None:
        outcome = _added(outcome, of_examples)
    # The whole gradient: through the outputs and direct. Parameters that neither reaches keep None,
    # so that the caller can refuse them.
    for name, total in sums.items():
        direct = gradients[name]
        gradients[name] = total if direct is None else total + direct
    return outcome, gradients


class _Microbatches:
    """A batch in parts, and what is computed of each."""

    def __init__(
        self,
        inputs: Tensors,
        objectives: Sequence[Objective],
        call: Callable[[Tensors, Any], Any],
        say: Callable[[Sequence[Objective], Any], dict[str, Tensors]],
        learn: Callable[[Sequence[Objective], Mapping[str, Tensors], Any], Outcome],
        num_parts: int,
    ):
        """Cuts the batch; the arguments are those of `forward_backward`."""
        self.pairs = [item for item in objectives if item.over == "pairs"]
        self._examples = [item for item in objectives if item.over == "examples"]
        self._inputs = inputs
        self._parts = tf.nest.map_structure(lambda x: _split(x, num_parts), inputs)
        self._call, self._say, self._learn = call, say, learn
        self._num_parts = num_parts

    def _call_of(self, number: Any) -> Any:
        return self._call(tf.nest.map_structure(lambda x: x[number], self._parts), number)

    def loss_of_pairs(self, trained: Tensors) -> tuple[Outcome, dict[Any, tf.Tensor], Any]:
        """Returns the outcome of the objectives over pairs, and its gradients.

        Returns:
            The outcome; the gradients of outputs, by objective and name, cut into parts; and those
            of the parameters that the loss reads itself.
        """

        @tf.autograph.experimental.do_not_convert
        def say_part(number: tf.Tensor) -> dict[str, Tensors]:
            return self._say(self.pairs, self._call_of(number))

        # The first pass runs without a tape, so that it keeps outputs but no activations.
        specs = _specs(say_part)
        stacked = tf.map_fn(
            say_part, tf.range(self._num_parts), fn_output_signature=specs, parallel_iterations=1
        )
        outputs = tf.nest.map_structure(_merged, stacked, specs)
        with tf.GradientTape() as tape:
            # The loss reads some parameters itself, such as the temperature; their direct gradients
            # are found here.
            tape.watch((outputs, trained))
            outcome = self._learn(self.pairs, outputs, self._call(self._inputs, 0))
        slopes_and_gradients: Any = tape.gradient(outcome.shares[LOSS], (outputs, trained))
        slopes, gradients = slopes_and_gradients
        # Outputs that no loss reads, such as those of frozen models, have no gradient.
        in_parts = {
            (objective, name): _split(value, self._num_parts)
            for objective, of_objective in slopes.items()
            for name, value in of_objective.items()
            if value is not None
        }
        return outcome, in_parts, gradients

    def add_parts(
        self, trained: Tensors, slopes: Mapping[Any, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], Outcome | None]:
        """Runs every part under a tape and adds up what comes of it.

        Args:
            trained: The parameters that get gradients, by name.
            slopes: Gradients of the outputs of objectives over pairs, as `loss_of_pairs` returns.

        Returns:
            The gradients through outputs, of the parameters that they depend on; and the outcome of
            the objectives over examples, None without any.
        """
        connected: set[str] = set()

        @tf.autograph.experimental.do_not_convert
        def add_part(number: tf.Tensor, sums: Any, learnt: Any) -> tuple[Any, Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(trained)
                shared = self._call_of(number)
                outputs = self._say(self.pairs, shared)
                # The second pass runs a part again under a tape. The chain rule goes on from the
                # gradients of its outputs.
                targets = [outputs[objective][name] for objective, name in slopes]
                upstream = [value[number] for value in slopes.values()]
                if self._examples:
                    of_part = self._learn_examples(shared)
                    targets.append(of_part.shares[LOSS])
                    # The loss of the whole batch is the sum of the shares of its parts.
                    upstream.append(tf.ones_like(of_part.shares[LOSS]))
                    learnt = tf.nest.map_structure(tf.add, learnt, of_part)
            gradients = tape.gradient(targets, trained, output_gradients=upstream)
            # The names are collected while the body is traced, since the loop returns a sum for
            # every parameter, if only of zeros.
            connected.update(name for name, value in gradients.items() if value is not None)
            added = {
                name: total if gradients[name] is None else total + gradients[name]
                for name, total in sums.items()
            }
            return number + 1, added, learnt

        zeros = {name: tf.zeros_like(value) for name, value in trained.items()}
        sums: Any
        learnt: Any
        _, sums, learnt = tf.while_loop(
            lambda number, *_: number < self._num_parts,
            add_part,
            (tf.constant(0), zeros, self._nothing_learnt()),
            parallel_iterations=1,
            maximum_iterations=self._num_parts,
        )
        if not self._examples:
            learnt = None
        else:
            # Shares of the loss add up; means are averaged, since the parts are of equal size.
            means = {name: value / self._num_parts for name, value in learnt.means.items()}
            learnt = learnt._replace(means=means)
        return {name: total for name, total in sums.items() if name in connected}, learnt

    def _learn_examples(self, shared: Any) -> Outcome:
        return self._learn(self._examples, self._say(self._examples, shared), shared)

    def _nothing_learnt(self) -> Any:
        """Returns the outcome of the objectives over examples before the first part: zeros."""
        if not self._examples:
            return ()

        @tf.autograph.experimental.do_not_convert
        def learn_part(number: tf.Tensor) -> Outcome:
            return self._learn_examples(self._call_of(number))

        return tf.nest.map_structure(lambda x: tf.zeros(x.shape, x.dtype), _specs(learn_part))


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
