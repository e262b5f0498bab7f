"""How gradients change parameters."""

from dataclasses import dataclass

from sigline.trainer.config import checks

# Rules are pairs of a regular expression, which must match a parameter's whole name, and a value.
# The first rule that matches wins.
Rules = tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients change parameters.

    A parameter p moves by `-s * (learning_rate * rate * u + weight_decay * decay * p)` for the
    schedule's factor s and the optimizer's direction u: the decay is multiplied by the schedule,
    not by the learning rate, as in big_vision. So `weight_decay=1e-4` at `learning_rate=1e-3` is
    0.1 in the convention of Keras and PyTorch.

    Attributes:
        name: `adamw`, `adafactor` (that of arXiv 2106.04560) or `lion` (arXiv 2302.06675).
        learning_rate: Peak learning rate.
        weight_decay: Peak decay.
        rates: Factors of the learning rate by the parameter's name; None freezes it: no gradient,
            no slots, no decay. Every parameter must match.
        decays: Factors of the decay by the parameter's name; every parameter must match.
        beta_1: Decay of the first moment; of the momentum with `adafactor`.
        beta_2: Decay of the second moment; its limit with `adafactor`.
        epsilon: Added to the root of the second moment of `adamw`.
        clip_norm: Largest global norm of the gradient; None for no limit.
        schedule: After the warm-up: `cosine` or `linear` to zero, `rsqrt` (falls with the root of
            the steps, so that a run can be prolonged) or `constant`.
        warmup_steps: Steps of linear warm-up.
        cooldown_steps: Last steps, over which the rate also falls linearly to zero.
        timescale: Steps after the warm-up at which `rsqrt` has fallen to 1 / sqrt(2).
        first_moment_dtype: `float32`, or `bfloat16` to save two bytes a parameter.
        ema_decay: Of the moving average of the parameters that is exported; None exports the
            parameters themselves.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    rates: Rules = ((".*", 1.0),)
    decays: Rules = ((".*/kernel", 1.0), (".*", 0.0))
    beta_1: float = 0.9
    beta_2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float | None = 1.0
    schedule: str = "cosine"
    warmup_steps: int = 0
    cooldown_steps: int = 0
    timescale: int = 10_000
    first_moment_dtype: str = "float32"
    ema_decay: float | None = None

    @property
    def reads_steps(self) -> bool:
        """Whether the rate of a step depends on how many there will be."""
        return self.schedule not in ("rsqrt", "constant") or self.cooldown_steps > 0

    def check(self, key: str) -> None:
        """Raises ValueError, with the key and what to give, if a field makes no sense."""
        checks.one_of(f"{key}.name", self.name, ("adamw", "adafactor", "lion"))
        checks.one_of(f"{key}.schedule", self.schedule, ("cosine", "linear", "rsqrt", "constant"))
        checks.one_of(f"{key}.first_moment_dtype", self.first_moment_dtype, ("float32", "bfloat16"))
        for name in ("warmup_steps", "cooldown_steps"):
            checks.at_least(f"{key}.{name}", getattr(self, name), 0)
        checks.at_least(f"{key}.timescale", self.timescale, 1)
        for name in ("learning_rate", "weight_decay", "epsilon"):
            checks.not_negative(f"{key}.{name}", getattr(self, name))
        for name in ("beta_1", "beta_2", "ema_decay"):
            checks.share(f"{key}.{name}", getattr(self, name))
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(
                f"{key}.clip_norm must be positive, or none for no limit. "
                f"Received: {key}.clip_norm={self.clip_norm}"
            )
        for name, rules in (("rates", self.rates), ("decays", self.decays)):
            for pattern, value in rules:
                checks.pattern(f"{key}.{name}", pattern)
                # Frozen parameters are named by None; a rate of 0 would keep their slots.
                if (value is None and name == "decays") or (value is not None and not value >= 0):
                    raise ValueError(
                        f"{key}.{name} must hold factors of at least 0. "
                        f"Received: {pattern!r} with {value}"
                    )
