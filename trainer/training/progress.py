"""What a run shows of itself: a progress line, TensorBoard scalars, rates."""

import contextlib
import time
from collections.abc import Hashable, Iterator
from pathlib import Path

import tensorflow as tf

from sigline.schemas import progress
from sigline.trainer.config import TrainConfig
from sigline.trainer.training import attention_monitor

# Examples of a batch that are written for looking at.
_SHOWN = 8


class Meter:
    """Times steps and waits; the first step of a program, which compiles it, does not count.

    It is a context around each wait for data.
    """

    def __init__(self, batch_size: int):
        """Starts the clock.

        Args:
            batch_size: Images per step.
        """
        self._batch_size = batch_size
        self._programs: set[Hashable] = set()
        self._steps = 0
        self._seconds = self._waited = 0.0
        self._waited_now = self._wait_started = 0.0
        self._last = time.perf_counter()

    def __enter__(self) -> None:
        self._wait_started = time.perf_counter()

    def __exit__(self, *_) -> None:
        self._waited_now += time.perf_counter() - self._wait_started

    def step_done(self, program: Hashable = None) -> None:
        """Counts a step, and all the time since the one before.

        Args:
            program: What the step was compiled for.
        """
        now = time.perf_counter()
        if program in self._programs:
            self._steps += 1
            self._seconds += now - self._last
            self._waited += self._waited_now
        self._programs.add(program)
        self._last, self._waited_now = now, 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of its block out of that of the steps."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._last += time.perf_counter() - started

    @property
    def images_per_second(self) -> float:
        """Mean rate; zero before the second step of a program."""
        return self._batch_size * self._steps / max(self._seconds, 1e-9)

    @property
    def data_wait_fraction(self) -> float:
        """Share of the time spent waiting for data."""
        return self._waited / max(self._seconds, 1e-9)


class Report:
    """The line that says how far the training is, and TensorBoard events beside it."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        first_step: int,
        log_dir: str | Path | None,
        silent: bool = False,
    ):
        """Opens both.

        Args:
            config: Names the run and its steps.
            first_step: Steps done before.
            log_dir: Folder for events; none are written if it is None.
            silent: Whether to leave the progress line to another process.
        """
        self._stack = contextlib.ExitStack()
        self._silent, self._is_first = silent, True
        if not silent:
            training = progress.part(
                f"train {config.name}", total=config.steps, unit="steps", first=first_step
            )
            self._stack.enter_context(training)
            # The first step compiles the whole program, which takes long.
            progress.note("compiling")
        self._writer = tf.summary.create_file_writer(str(log_dir)) if log_dir is not None else None

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)
        if self._writer is not None:
            self._writer.close()

    def step_done(self) -> None:
        """Moves the line on."""
        if not self._silent:
            progress.advance()
            if self._is_first:
                progress.note("")
            self._is_first = False

    def show_batch(self, number: int, images: tf.Tensor, texts: list[str]) -> None:
        """Writes what the model is trained on, so that one can look at it.

        Args:
            number: Steps done.
            images: Pixels as the model gets them, uint8 of shape `(batch, size, size, 3)`; image
                embeddings, which show nothing, are left out.
            texts: What the tokenizer made of the texts, turned back.
        """
        if self._writer is None:
            return
        with self._writer.as_default(step=number):
            if images.shape.rank == 4:
                tf.summary.image("batch/images", images, max_outputs=_SHOWN)
            if texts:
                lines = [f"{i}. {text}" for i, text in enumerate(texts[:_SHOWN])]
                tf.summary.text("batch/texts", "\n".join(lines))
        self._writer.flush()

    def show(self, number: int, values: dict[str, float]) -> None:
        """Shows and writes the scalars of a step.

        Args:
            number: Steps done.
            values: By name; `loss`, `images_per_second` and `data_wait_fraction` are shown, and the
                extremes of attention, if it is monitored.
        """
        if not self._silent:
            progress.note(_line(values))
        if self._writer is not None:
            with self._writer.as_default(step=number):
                for name, value in values.items():
                    tf.summary.scalar(name, value)
            self._writer.flush()


def _line(values: dict[str, float]) -> str:
    line = (
        f"loss {values['loss']:.3f}, {values['images_per_second']:.0f} images/s, "
        f"data wait {values['data_wait_fraction']:.0%}"
    )
    if attention_monitor.MAX_LOGIT in values:
        logit = values[attention_monitor.MAX_LOGIT]
        share = values[attention_monitor.MIN_ENTROPY_SHARE]
        line += f", attention logits up to {logit:.1f}, entropy from {share:.0%}"
    return line
