"""How a run goes: strategy, compilation, checkpoints, logs, tolerances."""

from dataclasses import dataclass

from sigline.trainer.config import checks

STRATEGIES = ("auto", "multi_worker", "tpu", "mirrored", "one_device")


@dataclass(frozen=True)
class RunConfig:
    """How a run goes: what does not decide its outcome, and may change when it is resumed.

    Attributes:
        checkpoint_steps: Steps between checkpoints.
        checkpoint_minutes: Minutes after which one is saved in any case; None for no limit.
        keep_checkpoints: The newest ones are kept, this many of them.
        keep_every_steps: Checkpoints at multiples of this are kept for good; None for none.
        max_skipped_steps: Steps that may change nothing because loss or gradient is not finite; one
            more stops the run, which then writes the keys of the first such batch.
        max_damaged_records: Records that may be unreadable in all; each is replaced by one beside
            it, and listed. One more stops the run.
        log_steps: Steps between log lines and TensorBoard scalars.
        monitor_attention: Whether the scalars have the entropy and the largest logit of attention
            in each block, which costs the forward pass of a few examples.
        strategy: `auto` (the workers of `$TF_CONFIG`, else all TPU cores, else all GPUs, else the
            CPU), `multi_worker`, `tpu`, `mirrored` or `one_device`.
        jit_compile: Whether XLA compiles the forward and backward pass and the update; None means
            on a TPU and on a single GPU, and elsewhere the update and parts of the towers.
        exchange: How texts reach the images of other replicas: `ring`, `all_gather` or `auto`.
    """

    checkpoint_steps: int = 1000
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 2
    keep_every_steps: int | None = None
    max_skipped_steps: int = 0
    max_damaged_records: int = 0
    log_steps: int = 50
    monitor_attention: bool = False
    strategy: str = "auto"
    jit_compile: bool | None = None
    exchange: str = "auto"

    def check(self, key: str) -> None:
        """Raises ValueError, with the key and what to give, if a field makes no sense."""
        checks.one_of(f"{key}.strategy", self.strategy, STRATEGIES)
        checks.one_of(f"{key}.exchange", self.exchange, ("auto", "ring", "all_gather"))
        for name in ("checkpoint_steps", "keep_checkpoints", "keep_every_steps", "log_steps"):
            checks.at_least(f"{key}.{name}", getattr(self, name), 1)
        for name in ("max_skipped_steps", "max_damaged_records"):
            checks.at_least(f"{key}.{name}", getattr(self, name), 0)
        minutes = self.checkpoint_minutes
        if minutes is not None and not minutes > 0:
            raise ValueError(
                f"{key}.checkpoint_minutes must be positive, or none. "
                f"Received: {key}.checkpoint_minutes={minutes}"
            )
