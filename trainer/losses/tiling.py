"""Visits a matrix of all pairs block by block, so that it is never in memory as a whole."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

# Pairs in a block, 16 MiB of float32, if that leaves texts enough for a product at full speed.
_BLOCK_PAIRS = 2**22
_MIN_CHUNK_SIZE = 512
# Whole tiles of a TPU's matrix unit.
_TILE = 256
# Terms of a float32 sum that are added one after the other.
_STAGE = 64

# Nested structures of tensors.
Structure = Any
# visit(chunk, start, state) -> (row_values, state)
VisitChunk = Callable[[Structure, tf.Tensor, Structure], tuple[Structure, Structure]]


def default_chunk_size(num_columns: int | None) -> int:
    """Returns how many rows a block has if the matrix has `num_columns` columns."""
    size = _BLOCK_PAIRS // (num_columns or _BLOCK_PAIRS)
    return max(size - size % _TILE, _MIN_CHUNK_SIZE)


def num_rows(x: tf.Tensor) -> Any:
    """Returns the number of rows, an int where it is known when the graph is built."""
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def over_chunks(
    visit: VisitChunk, rows: Structure, state: Structure, *, row_specs: Structure, chunk_size: int
) -> tuple[Structure, Structure]:
    """Visits rows chunk by chunk, one after the other.

    Args:
        visit: Gets up to `chunk_size` rows, the number of the first of them, and the state. Returns
            tensors with a value for each row, and the next state.
        rows: Tensors `(rows, ...)` with the same number of rows.
        state: Passed from one visit to the next; its shapes must not change.
        row_specs: A `tf.TensorSpec` of one row of each tensor that `visit` returns.
        chunk_size: Need not divide the number of rows.

    Returns:
        The values of all rows in their order, and the last state.
    """
    count = num_rows(tf.nest.flatten(rows)[0])
    if isinstance(count, int) and count <= chunk_size:
        return visit(rows, tf.zeros((), tf.int32), state)
    # Only equal chunks go through the loop, where XLA needs static shapes; a smaller rest follows
    # it.
    num_chunks = count // chunk_size
    specs = tf.nest.flatten(row_specs)
    arrays = [
        tf.TensorArray(s.dtype, size=num_chunks, element_shape=(chunk_size, *s.shape))
        for s in specs
    ]

    def body(number, arrays, state):
        start = number * chunk_size
        chunk = tf.nest.map_structure(
            lambda x: tf.slice(
                x, [start] + [0] * (x.shape.rank - 1), [chunk_size, *x.shape[1:].as_list()]
            ),
            rows,
        )
        values, state = visit(chunk, start, state)
        values = tf.nest.flatten(values)
        arrays = [a.write(number, x) for a, x in zip(arrays, values, strict=True)]
        return number + 1, arrays, state

    _, arrays, state = tf.while_loop(
        lambda number, *_: number < num_chunks,
        body,
        (tf.zeros((), tf.int32), arrays, state),
        # Parallel iterations would hold several blocks in memory.
        parallel_iterations=1,
    )
    # Equal chunks are stacked and flattened, since XLA has no `TensorArray.concat`.
    values = [
        tf.reshape(array.stack(), (num_chunks * chunk_size, *spec.shape))
        for array, spec in zip(arrays, specs, strict=True)
    ]
    done = num_chunks * chunk_size
    if not isinstance(count, int) or done < count:
        rest = tf.nest.map_structure(lambda x: x[done:], rows)
        last, state = visit(rest, tf.convert_to_tensor(done, tf.int32), state)
        values = [tf.concat(pair, 0) for pair in zip(values, tf.nest.flatten(last), strict=True)]
    return tf.nest.pack_sequence_as(row_specs, values), state


def sum_rows(x: tf.Tensor) -> tf.Tensor:
    """Sums `(rows, ...)` over its rows, exactly enough for float32; call it under XLA only.

    XLA merges a reduction of a reduction into one and on a CPU adds its terms one by one: over
    8,192 x 8,192 losses that is 1 % off. Stages of few terms with barriers between them keep
    the error near one unit in the last place.
    """
    while True:
        count = num_rows(x)
        if isinstance(count, int) and count <= _STAGE:
            return barrier(tf.reduce_sum(x, 0))
        padding = [[0, -count % _STAGE]] + [[0, 0]] * (x.shape.rank - 1)
        x = tf.pad(x, padding)
        x = tf.reshape(x, tf.concat([[-1, _STAGE], tf.shape(x)[1:]], 0))
        x = barrier(tf.reduce_sum(x, 1))
        if not isinstance(count, int):
            return barrier(tf.reduce_sum(x, 0))


def positives(block: tf.Tensor, diagonal: tf.Tensor) -> tf.Tensor:
    """Returns which pairs of a block `(texts, images)` are (i, diagonal + i); under XLA only."""
    size = tf.shape(block)
    # Behind a barrier, so that no compiler stores the mask in the program as a constant.
    return tf.range(size[0])[:, tf.newaxis] + barrier(diagonal) == tf.range(size[1])


def barrier(x: tf.Tensor) -> tf.Tensor:
    """Returns the tensor as something that XLA knows nothing about; call it under XLA only."""
    outputs: Any = xla.optimization_barrier(x)
    return outputs[0]


@tf.function(jit_compile=True, autograph=False)
def sum_all(x: tf.Tensor) -> tf.Tensor:
    """Sums a tensor of any shape to a scalar, as exactly as `sum_rows`."""
    return sum_rows(tf.reshape(x, (-1,)))
