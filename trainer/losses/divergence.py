"""Losses of a student whose targets are what a teacher says of classes."""

import tensorflow as tf


def kl_divergence(teacher: tf.Tensor, student: tf.Tensor, *, temperature: float = 1.0) -> tf.Tensor:
    """Returns T^2 * KL(softmax(teacher / T) || softmax(student / T)) of each row.

    Args:
        teacher: Logits, shape `(batch, classes)`; no gradient flows to them.
        student: Logits of the same shape.
        temperature: T, positive; its square keeps the size of the gradient.

    Returns:
        Shape `(batch,)`, float32, at least zero.

    Raises:
        ValueError: If the shapes differ.

    Source: arXiv 1503.02531, section 2; arXiv 2106.05237, section 3.
    """
    teacher, student = _checked(teacher, student)
    ours = tf.nn.log_softmax(student / temperature)
    theirs = tf.nn.log_softmax(tf.stop_gradient(teacher) / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(theirs) * (theirs - ours), axis=-1)


def hard_cross_entropy(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Returns -log softmax(student)_c of each row, c being the teacher's best class.

    Args:
        teacher: Logits, shape `(batch, classes)`; no gradient flows to them. Of equal ones the
            first counts.
        student: Logits of the same shape.

    Returns:
        Shape `(batch,)`, float32.

    Raises:
        ValueError: If the shapes differ.

    Source: arXiv 2012.12877, section 4.
    """
    teacher, student = _checked(teacher, student)
    best = tf.argmax(tf.stop_gradient(teacher), axis=-1)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=best, logits=student)


def _checked(teacher: tf.Tensor, student: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            "teacher and student must have the same shape (batch, classes). "
            f"Received: teacher.shape={teacher.shape}, student.shape={student.shape}"
        )
    return tf.cast(teacher, tf.float32), tf.cast(student, tf.float32)
