"""The losses in float64, from their definitions and with the whole matrix of pairs."""

import numpy as np


def pairs(batch, dim=16, seed=0):
    """Returns unit embeddings of related images and texts, float64."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((batch, dim))
    text = 0.5 * image + rng.standard_normal((batch, dim))
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]


def sigmoid(image, text, temperature, bias, targets=None, weights=1.0):
    """Returns loss and gradients; targets and weights have the shape `(images, texts)`."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    targets = np.eye(len(image)) if targets is None else targets
    scores = image @ text.T
    logits = temperature * scores + bias
    losses = targets * np.logaddexp(0, -logits) + (1 - targets) * np.logaddexp(0, logits)
    positive, negative = np.exp(-np.logaddexp(0, -logits)), np.exp(-np.logaddexp(0, logits))
    slopes = weights * ((1 - targets) * positive - targets * negative) / len(image)
    return {
        "loss": (weights * losses).sum() / len(image),
        "image": temperature * slopes @ text,
        "text": temperature * slopes.T @ image,
        "temperature": (slopes * scores).sum(),
        "bias": slopes.sum(),
    }


def sigmoid_scalars(image, text, temperature, bias, rows=1024):
    """Returns loss and gradients of the scalars for batches whose matrix would be too large."""
    batch, totals = len(image), np.zeros(3)
    for start in range(0, batch, rows):
        scores = image[start : start + rows] @ text.T
        logits = temperature * scores + bias
        own = np.arange(len(scores)), start + np.arange(len(scores))
        slopes = np.exp(-np.logaddexp(0, -logits))
        slopes[own] -= 1
        loss = np.logaddexp(0, logits).sum() - logits[own].sum()
        totals += loss, (slopes * scores).sum(), slopes.sum()
    return dict(zip(("loss", "temperature", "bias"), totals / batch, strict=True))


def softmax(image, text, temperature):
    """Returns loss and gradients."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    scores = image @ text.T
    logits = temperature * scores
    rows = np.logaddexp.reduce(logits, axis=1, keepdims=True)
    columns = np.logaddexp.reduce(logits, axis=0, keepdims=True)
    own = np.diag(logits)
    slopes = np.exp(logits - rows) + np.exp(logits - columns) - 2 * np.eye(len(image))
    slopes /= 2 * len(image)
    return {
        "loss": 0.5 * ((rows[:, 0] - own).mean() + (columns[0] - own).mean()),
        "image": temperature * slopes @ text,
        "text": temperature * slopes.T @ image,
        "temperature": (slopes * scores).sum(),
    }


def assert_close(found, expected, tolerance=2e-6):
    """Asserts that each array is within `tolerance` of the expected one's largest entry."""
    for name, value in expected.items():
        actual, scale = np.asarray(found[name], np.float64), np.abs(value).max()
        assert np.isfinite(actual).all(), f"{name} is not finite"
        error = np.abs(actual - value).max()
        assert error <= tolerance * scale, f"{name} is off by {error / scale:.1e}"
