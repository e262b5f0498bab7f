"""The divergence of a student's distributions over classes from a teacher's."""

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
    teacher, student = (tf.cast(x, tf.float32) for x in (teacher, student))
    if not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            "teacher and student must have the same shape (batch, classes). "
            f"Received: teacher.shape={teacher.shape}, student.shape={student.shape}"
        )
    ours = tf.nn.log_softmax(student / temperature)
    theirs = tf.nn.log_softmax(tf.stop_gradient(teacher) / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(theirs) * (theirs - ours), axis=-1)
