"""An objective that uses all that the interface has: a layer, state without gradient, variants."""

import dataclasses
from typing import ClassVar

import keras
import tensorflow as tf

from sigline.trainer.inputs import needs
from sigline.trainer.inputs.views import View
from sigline.trainer.objectives import base, making

DECAY = 0.9
DIM = 4


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """See `Toy`."""

    kind: ClassVar[str] = "toy"
    mixes: ClassVar[bool] = True
    takes_embedded: ClassVar[bool] = False
    asks: ClassVar[dict] = {}
    name: ClassVar[str] = "toy"
    weight: float = 0.5
    over: str = "examples"
    variants: tuple[int, ...] = (1, 2, 3)

    def check(self, key, config):
        """Takes anything."""


@dataclasses.dataclass(frozen=True)
class ToyOfPairsConfig(ToyConfig):
    """See `Toy`: one over pairs, which may stand beside one over examples."""

    kind: ClassVar[str] = "toy_of_pairs"
    name: ClassVar[str] = "toy_of_pairs"
    over: str = "pairs"


class Toy(base.Objective):
    """Draws projections of two crops to a moving mean of them, scaled by the step's variant."""

    over = "examples"

    def __init__(self, config, context):
        super().__init__(config.name, config.weight)
        self.over = config.over
        self.variants = config.variants
        tower = context.config.image
        self._needs = needs.Needs({"image": View(tower), "other_image": View(tower, crop=1)})
        self.layer = keras.layers.Dense(DIM, name="projection")
        self.layer.build((None, tower.output_dim))

    def needs(self):
        """Returns two views."""
        return self._needs

    def outputs(self, call):
        """Returns the projections of both."""
        return {
            view: self.layer(call.image(view)["embedding"]) for view in ("image", "other_image")
        }

    def loss(self, outputs, call):
        """Returns the mean squared distance, and the sum of the projections."""
        # Over pairs there is no count: it is that of all replicas.
        count = call.count
        if count is None:
            count = call.exchange.sum(tf.cast(tf.shape(outputs["image"])[0], tf.float32))
        scale = tf.cast(call.variant or 1, tf.float32)
        values = tf.concat(list(outputs.values()), axis=0)
        distances = tf.reduce_sum((scale * values - call.state["mean"]) ** 2)
        return base.Outcome(
            {"loss": distances / count},
            {"variant": scale},
            {"sum": tf.reduce_sum(tf.stop_gradient(values), 0), "count": 2.0 * _rows(outputs)},
        )

    def state(self):
        """Returns a mean of zero, and that of the kernel."""
        return {"mean": tf.zeros(DIM), "kernel": tf.zeros(())}

    def next_state(self, state, statistics, parameters):
        """Returns the moving mean, and the norm of the kernel after the step."""
        mean = statistics["sum"] / statistics["count"]
        kernel = tf.norm(parameters[f"objectives/{self.name}/kernel"])
        return {"mean": DECAY * state["mean"] + (1 - DECAY) * mean, "kernel": kernel}


def _rows(outputs):
    return tf.cast(tf.shape(outputs["image"])[0], tf.float32)


def register():
    """Returns the table of objectives with this one."""
    return {**making.OBJECTIVES, ToyConfig: Toy, ToyOfPairsConfig: Toy}
