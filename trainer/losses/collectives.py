"""Exchange between replicas: how texts meet the images of every replica.

A contrastive loss needs all pairs of the global batch, while each replica holds only its own rows.
Images stay where they are. Texts visit: in the ring a replica's texts move on to the next replica
round by round, and what they collect there (their gradient) travels with them until both are home;
in the all-gather form every replica fetches all texts at once and returns what they collect. Both
forms call the same `visit`, so the mathematics of a loss is written once.
"""

from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

# Nested structures of tensors with a leading axis of rows.
Rows = Any
# visit(rows, state, home) -> (collected, state); `home` is true for the replica's own rows.
Visit = Callable[[Rows, Any, bool], tuple[Rows, Any]]
# merge(earlier, later) -> both; associative.
Merge = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Exchange(Protocol):
    """Brings the rows of all replicas to each replica, and what they collect back.

    Attributes:
        num_replicas: Replicas that take part.
    """

    num_replicas: int

    def sweep(self, visit: Visit, rows: Rows, state: Any, merge: Merge) -> tuple[Rows, Any]:
        """Shows the rows of every replica to this one, its own first.

        Args:
            visit: Called once per replica; the structures of what it returns are always the same.
            rows: This replica's own, which travel.
            state: Stays here and passes through the calls of `visit`.
            merge: Joins what the same rows collected at two replicas.

        Returns:
            What this replica's own rows collected everywhere, and the last state.
        """
        ...

    def sum(self, x: Any, /) -> Any:
        """Sums a structure of tensors over replicas; not meant to be differentiated."""
        ...

    def replica_id(self) -> tf.Tensor:
        """Returns a number of this replica, an int32 scalar in [0, num_replicas)."""
        ...


class Ring:
    """Rows and what they collect move from replica to replica until both are home again.

    No replica ever holds more than two blocks of rows, however many replicas there are.
    """

    def __init__(
        self,
        num_replicas: int,
        *,
        shift: Callable[[list[tf.Tensor]], list[tf.Tensor]],
        sum_over_replicas: Callable[[Any], Any],
        replica_id: Callable[[], tf.Tensor],
    ):
        """Forms a ring.

        Args:
            num_replicas: Replicas in the ring.
            shift: Hands tensors to the next replica and returns those of the one before.
            sum_over_replicas: Sums a structure of tensors over replicas.
            replica_id: Returns the number of the replica.
        """
        self.num_replicas = num_replicas
        self.shift = shift
        self.sum = sum_over_replicas
        self.replica_id = replica_id

    def sweep(self, visit: Visit, rows: Rows, state: Any, merge: Merge) -> tuple[Rows, Any]:
        """See `Exchange.sweep`."""
        collected = None
        for round_number in range(self.num_replicas):
            collected_here, state = visit(rows, state, round_number == 0)
            # What arrived with these rows was collected at the replicas before this one.
            if collected is not None:
                collected_here = tf.nest.map_structure(merge, collected, collected_here)
            # Rows are done after the last visit, but what they collected still has to go home.
            if round_number < self.num_replicas - 1:
                # Not before this visit is over: an executor that follows data only would fetch all
                # blocks at once.
                with tf.control_dependencies(tf.nest.flatten(state)):
                    rows = tf.nest.map_structure(tf.identity, rows)
                rows = self._shift_all(rows)
            # As many shifts as replicas make a full circle: the last one brings everything home.
            collected = self._shift_all(collected_here)
        return collected, state

    def _shift_all(self, structure: Rows) -> Rows:
        flat = tf.nest.flatten(structure)
        if self.num_replicas == 1 or not flat:
            return structure
        return tf.nest.pack_sequence_as(structure, self.shift(flat))


class AllGather:
    """Every replica fetches all rows at once; needs memory for the rows of all replicas.

    All replicas must hold equally many rows.
    """

    def __init__(self, context: tf.distribute.ReplicaContext):
        """Exchanges by the collectives of a replica context."""
        self.num_replicas = context.num_replicas_in_sync
        self._context = context

    def sum(self, x: Any) -> Any:
        """See `Exchange.sum`."""
        return self._context.all_reduce(tf.distribute.ReduceOp.SUM, x)

    def replica_id(self) -> tf.Tensor:
        """See `Exchange.replica_id`."""
        return tf.cast(self._context.replica_id_in_sync_group, tf.int32)

    def sweep(self, visit: Visit, rows: Rows, state: Any, merge: Merge) -> tuple[Rows, Any]:
        """See `Exchange.sweep`."""
        me = self.replica_id()
        everyone = tf.nest.map_structure(self._gather, rows)
        rounds = []
        for round_number in range(self.num_replicas):
            # Own rows come first, so that `home` is known when the graph is built. Whose rows
            # follow depends on the replica and is a tensor.
            home = round_number == 0
            owner = (me + round_number) % self.num_replicas
            theirs = rows if home else tf.nest.map_structure(lambda x, o=owner: x[o], everyone)
            collected_here, state = visit(theirs, state, home)
            rounds.append(collected_here)
        # Round r visited the rows of replica me + r. Rolled by `me`, the stack has the entry of
        # each owner at its number.
        outgoing = tf.nest.map_structure(lambda *x: tf.roll(tf.stack(x), me, axis=0), *rounds)
        return tf.nest.map_structure(lambda x: self._deliver(x, me, merge), outgoing), state

    def _gather(self, x: tf.Tensor) -> tf.Tensor:
        """Stacks the tensors of all replicas."""
        gathered = self._context.all_gather(x[tf.newaxis], axis=0)
        return tf.ensure_shape(gathered, (self.num_replicas, *x.shape))

    def _deliver(self, outgoing: tf.Tensor, me: tf.Tensor, merge: Merge) -> tf.Tensor:
        """Hands `(owners, rows, ...)` to the owners; joins what each receives from all."""
        # An all-reduce suffices where parts are summed; any other merge needs the parts of all
        # replicas.
        if merge is tf.add:
            return self.sum(outgoing)[me]
        received = self._gather(outgoing)[:, me]
        joined = received[0]
        for sender in range(1, self.num_replicas):
            joined = merge(joined, received[sender])
        return joined


def exchange_for_context(form: str = "auto") -> Exchange:
    """Returns the exchange for the strategy in whose replica context it is called.

    Args:
        form: `ring`, `all_gather`, or `auto`: the ring on TPUs and under `MirroredStrategy`, the
            all-gather form elsewhere, such as under `MultiWorkerMirroredStrategy`, where one
            process cannot reach the replicas of another.

    Raises:
        RuntimeError: If it is called outside of a replica context (a loss would see only the
            pairs of one replica), or the strategy has no ring.
        ValueError: If the form is unknown.
    """
    if form not in ("auto", "ring", "all_gather"):
        raise ValueError(f"form must be auto, ring or all_gather. Received: form={form!r}")
    context = tf.distribute.get_replica_context()
    if context is None:
        raise RuntimeError(
            "A loss over pairs must run in replica context, where it can reach the pairs of all "
            "replicas. Call it inside `strategy.run(...)`, not in the strategy's scope."
        )
    if context.num_replicas_in_sync == 1:
        return single_replica()
    ring = None if form == "all_gather" else _ring_of(context)
    if ring is None and form == "ring":
        raise RuntimeError(
            f"{type(context.strategy).__name__} has no ring: its replicas cannot hand tensors to "
            "one another. Received: form='ring'. Use auto or all_gather."
        )
    return ring or AllGather(context)


def _ring_of(context: tf.distribute.ReplicaContext) -> Ring | None:
    if isinstance(context.strategy, tf.distribute.TPUStrategy):
        return tpu_ring(context.num_replicas_in_sync)
    if isinstance(context.strategy, tf.distribute.MirroredStrategy):
        return _mirrored_ring(context)
    return None


def single_replica() -> Ring:
    """Returns the exchange of one replica with itself, which moves nothing."""
    return Ring(
        1,
        shift=lambda tensors: tensors,
        sum_over_replicas=lambda x: x,
        replica_id=lambda: tf.zeros((), tf.int32),
    )


def tpu_ring(num_replicas: int) -> Ring:
    """Returns the ring of TPU cores; collectives of `tf.raw_ops`, so that it needs no strategy.

    The TPU numbers its replicas in its own way, which need not be the strategy's. The ring does not
    depend on it: any cyclic order will do.
    """
    pairs = [[i, (i + 1) % num_replicas] for i in range(num_replicas)]
    everyone = [list(range(num_replicas))]
    return Ring(
        num_replicas,
        shift=lambda tensors: [
            tf.raw_ops.CollectivePermute(input=x, source_target_pairs=pairs) for x in tensors
        ],
        sum_over_replicas=lambda structure: tf.nest.map_structure(
            lambda x: tf.raw_ops.CrossReplicaSum(input=x, group_assignment=everyone), structure
        ),
        replica_id=xla.replica_id,
    )


def _mirrored_ring(context: tf.distribute.ReplicaContext) -> Ring:
    def rotate(strategy, *values):
        devices = strategy.extended.worker_devices
        moved = []
        for value in values:
            parts = strategy.experimental_local_results(value)
            rotated = []
            for position, device in enumerate(devices):
                with tf.device(device):
                    # Replica i gets the part of replica i - 1; position -1 closes the ring.
                    rotated.append(tf.identity(parts[position - 1]))
            moved.append(rotated)
        return tuple(
            strategy.experimental_distribute_values_from_function(
                lambda c, r=rotated: r[c.replica_id_in_sync_group]
            )
            for rotated in moved
        )

    return Ring(
        context.num_replicas_in_sync,
        shift=lambda tensors: list(context.merge_call(rotate, args=tuple(tensors))),
        sum_over_replicas=lambda x: context.all_reduce(tf.distribute.ReduceOp.SUM, x),
        replica_id=lambda: tf.cast(context.replica_id_in_sync_group, tf.int32),
    )
