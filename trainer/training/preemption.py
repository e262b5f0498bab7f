"""Notices that the machine is about to be taken away, so that a run can save what it has."""

import signal
import threading


class Preempted(Exception):
    """A run was asked to stop; its state was saved before.

    Attributes:
        step: Steps done and saved.
    """

    def __init__(self, step: int):
        super().__init__(
            f"Stopped by SIGTERM; step {step} is saved. The same command goes on from there."
        )
        self.step = step


class TerminationNotice:
    """Notes SIGTERM instead of dying of it, as long as it is entered.

    Kubernetes, Slurm and preemptible VMs send it some seconds before the kill. Outside of the main
    thread, which alone gets signals, nothing is noticed.
    """

    def __init__(self):
        self.received = False
        self._before = None

    def __enter__(self) -> "TerminationNotice":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_) -> None:
        self.received = True
