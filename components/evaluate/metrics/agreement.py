"""How far a student is from its teacher."""

import numpy as np


def agreement(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Returns whether both pick the same class, shape `(examples,)`.

    Args:
        student: Scores, shape `(examples, classes)`.
        teacher: Scores, shape `(examples, classes)`.
    """
    return student.argmax(axis=1) == teacher.argmax(axis=1)


def divergence(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Returns KL(teacher || student) of the softmax of logits, in nats, shape `(examples,)`.

    Args:
        student: Logits, shape `(examples, classes)`.
        teacher: Logits, shape `(examples, classes)`.
    """
    student, teacher = _log_softmax(student), _log_softmax(teacher)
    return (np.exp(teacher) * (teacher - student)).sum(axis=1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
