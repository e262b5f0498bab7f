"""Scalars of attention in training: whether logits grow and entropies collapse.

Source: arXiv 2302.05442, section 2, whose largest models diverged by logits that grew until each
query attended to one token.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from sigline.trainer.inputs import needs, preprocess
from sigline.trainer.models import attention_statistics
from sigline.trainer.models.attention_statistics import AttentionStatistics
from sigline.trainer.training.calls import Models

# Examples of one replica that are looked at.
EXAMPLES = 8
# The extremes over all blocks.
MAX_LOGIT, MIN_ENTROPY_SHARE = "attention/max_logit", "attention/min_entropy_share"


def make_monitor(
    models: Models, strategy: tf.distribute.Strategy
) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    """Returns what turns a (distributed) batch into scalars to log.

    It is a program of its own that reads the parameters as they are and changes nothing. It looks
    at the first examples of one replica, as they are read: nothing is mixed and nothing dropped. A
    FlexiViT has its default grid. A tower whose images are embedded before does not run.

    The scalars are `attention_max_logit/BLOCK`, `attention_entropy/BLOCK` (nats) and
    `attention_entropy_share/BLOCK` of each block and attention pool, and the extremes over all.

    Args:
        models: What is trained; frozen towers of the model are looked at, teachers are not.
        strategy: The run's.
    """

    def replica_scalars(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return _by_name(_statistics(models, batch))

    @tf.function(autograph=False)
    def scalars_of(batch):
        scalars = strategy.run(replica_scalars, args=(batch,))
        return {n: strategy.experimental_local_results(v)[0] for n, v in scalars.items()}

    return lambda batch: {name: float(value) for name, value in scalars_of(batch).items()}


def _statistics(models: Models, batch: Mapping[str, tf.Tensor]) -> dict[str, AttentionStatistics]:
    """Returns the statistics of the model's layers, by their names below the model."""
    model = models.model
    with attention_statistics.recording() as recorded:
        view = None if models.embedded else _own_view(models)
        if view is not None:
            pixels = preprocess.to_model_range(batch[view][:EXAMPLES], model.config.image)
            model.look(pixels)
        if model.text is not None and needs.TEXT in batch:
            model.embed_text(batch[needs.TEXT][:EXAMPLES])
    if not recorded:
        raise ValueError(
            "run.monitor_attention must be false where no layer of attention sees the batch. "
            f"Received: run.monitor_attention=true, a batch of {', '.join(sorted(batch))}"
        )
    prefix = f"{model.name}/"
    return {
        path.removeprefix(prefix).removesuffix("/attention"): statistics
        for path, statistics in recorded.items()
    }


def _own_view(models: Models) -> str | None:
    """Returns the name of the first view that the model's image tower sees."""
    views = models.needs.images.items()
    return next((name for name, view in views if view.tower == models.config.image), None)


def _by_name(statistics: Mapping[str, AttentionStatistics]) -> dict[str, tf.Tensor]:
    scalars = {
        f"attention_{field}/{block}": value
        for block, values in statistics.items()
        for field, value in values._asdict().items()
    }
    logits = [item.max_logit for item in statistics.values()]
    shares = [item.entropy_share for item in statistics.values()]
    return scalars | {
        MAX_LOGIT: tf.reduce_max(tf.stack(logits)),
        MIN_ENTROPY_SHARE: tf.reduce_min(tf.stack(shares)),
    }
