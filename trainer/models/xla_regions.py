"""Parts of a step that XLA compiles where the step as a whole is not compiled.

TensorFlow runs a chain such as GELU as one pass over memory for every operation, and keeps what
each of them made for the gradient. XLA makes one pass of the chain. It does so for parts between
the large products, which TensorFlow's own kernels compute at least as fast on a CPU.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_FUSES = contextvars.ContextVar("fuses", default=False)

Apply = Callable[..., tf.Tensor]


@contextlib.contextmanager
def fusing(fuses: bool) -> Iterator[None]:
    """Says whether fusible functions are compiled in its block; by default they are not."""
    token = _FUSES.set(fuses)
    try:
        yield
    finally:
        _FUSES.reset(token)


def fusible(apply: Apply, *, recompute: bool = False) -> Apply:
    """Returns the same function, which XLA compiles within `fusing`.

    Args:
        apply: A function of tensors alone. Compiled once for all calls with the same shapes.
        recompute: Whether the gradient computes the inside again from the arguments instead of
            keeping it. For what is cheap beside a pass over memory.
    """
    compiled = tf.function(apply, jit_compile=True, autograph=False)
    fused = _recomputing(apply, compiled) if recompute else compiled

    @functools.wraps(apply)
    def choose(*arguments, **options):
        return (fused if _FUSES.get() else apply)(*arguments, **options)

    return choose


def _recomputing(apply: Apply, compiled: Apply) -> Apply:
    @tf.function(jit_compile=True, autograph=False)
    def gradient(arguments, upstream):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            outputs = apply(*arguments)
        return tape.gradient(outputs, arguments, upstream)

    @tf.custom_gradient
    def call(*arguments) -> Any:
        return compiled(*arguments), lambda upstream: gradient(list(arguments), upstream)

    return call
