"""Loads, checks and retires the versions of a model, so that they match its folder and policy.

A version that fails to load is tried again, with exponential backoff, and at once when its files
change. A version whose files are overwritten while it serves goes on with what was loaded.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from sigline.schemas import versions
from sigline.serving.server import version_files
from sigline.serving.server.model_versions import Model, Version
from sigline.serving.server.served_version import ServedVersion, State
from sigline.serving.server.version_loader import VersionLoader

_MAX_RETRY_PAUSE_SECONDS = 60.0


class VersionUpdates:
    """Changes the versions of models, one change at a time."""

    def __init__(
        self,
        loader: VersionLoader,
        lock: threading.Lock,
        event: Callable[..., None],
    ):
        """Takes what all models share.

        Args:
            loader: Loads versions.
            lock: Guards the versions of models, held for moments only.
            event: Called with the name and fields of each event of a version, for the log.
        """
        self._loader = loader
        self._lock = lock
        self._event = event
        # Versions that get no new requests, to be closed once those that they have are answered.
        self._retired: list[tuple[str, int, Version, ServedVersion]] = []

    def update(self, model: Model) -> None:
        """Loads and retires versions of a model, so that they match its folder and policy."""
        try:
            self._update(model)
        # A folder that cannot be read must not keep other models from being updated.
        except OSError as error:
            self._log_problem(model, "folder_not_read", str(error))

    def _update(self, model: Model) -> None:
        base = Path(model.config.base_path)
        directories = versions.directories(base)
        if not directories:
            # Versions that serve are kept: the folder may be unmounted for a moment.
            self._log_problem(model, "no_versions", version_files.why_empty(base))
            return
        model.problem = ""
        selected = model.config.policy.select(directories)
        with self._lock:
            for number in selected:
                model.versions.setdefault(number, Version())
        for number in selected:
            directory = directories.get(number, base / str(number))
            if model.versions[number].state is State.AVAILABLE:
                self._check_unchanged(model, number, directory)
            elif model.versions[number].state is not State.LOADING:
                self._load(model, number, directory)
        available = model.available()
        with self._lock:
            labels = {x: n for x, n in model.config.labels.items() if n in available}
            # A label whose new version is not loaded yet goes on naming its old one.
            old_labels = {x: n for x, n in model.labels.items() if x in model.config.labels}
            model.labels = old_labels | labels
        # An old version serves until a new one does, and as long as a label names it.
        if any(number in available for number in selected):
            for number in available:
                if number not in selected and number not in model.labels.values():
                    self.retire(model, number)
        # Ended versions stay in the status while their folder exists.
        with self._lock:
            for number in [n for n in model.versions if n not in selected and n not in directories]:
                if model.versions[number].state == State.END:
                    del model.versions[number]

    def _log_problem(self, model: Model, event: str, problem: str) -> None:
        """Logs what is wrong with a folder; not again while the same problem lasts."""
        if problem != model.problem:
            fields = {"model": model.config.name, "base_path": model.config.base_path}
            self._event(event, **fields, error=problem)
        model.problem = problem

    def _check_unchanged(self, model: Model, number: int, directory: Path) -> None:
        """Logs an event if the files of a version that serves are not those that were loaded."""
        version = model.versions[number]
        files = version_files.snapshot(directory)
        # Reading all files is slow, so their digests are compared only if the snapshot changed. A
        # folder that was removed is not an overwritten one.
        if files == version.files or version.served is None or not directory.is_dir():
            return
        names = version_files.changed_files(version.served.content, directory)
        version.files = files
        fields = {"model": model.config.name, "version": number, "path": str(directory)}
        if names and not version.note:
            note = (
                f"Version {number} was overwritten in its folder after it was loaded, which is "
                f"refused: {', '.join(names[:5])}{' and more' if names[5:] else ''}. The server "
                "goes on with what it loaded; publish the new model under a number of its own."
            )
            self._event("version_overwritten", **fields, error=note)
            version.note = note
        elif version.note and not names:
            self._event("version_restored", **fields)
            version.note = ""

    def _load(self, model: Model, number: int, directory: Path) -> None:
        version = model.versions[number]
        files = version_files.snapshot(directory)
        if files == version.files and time.monotonic() < version.retry_at:
            return
        if files != version.files:
            version.failures = 0
        # A folder without manifest may still be being copied, so it must be the same in two polls.
        # `sigline` publishes folders whole, with a manifest. A model that serves nothing yet is
        # loaded without that delay, and retried if it was incomplete.
        is_published = (directory / versions.MANIFEST).is_file()
        if not is_published and version.files != files and model.available():
            version.files = files
            return
        version.files = files
        begin = time.monotonic()
        self._set_state(version, State.LOADING)
        try:
            served = self._loader.load(model.config.name, number, directory)
            if version_files.snapshot(directory) != files:
                served.close()
                raise ValueError(f"{directory} changed while it was loaded; it is loaded again")
        # A model is a program that may raise anything. Its error must not end the server.
        except Exception as error:
            version.failures += 1
            pause = min(2.0 ** (version.failures - 1), _MAX_RETRY_PAUSE_SECONDS)
            version.retry_at = time.monotonic() + pause
            reason = (str(error).strip() or repr(error)).splitlines()[0][:500]
            self._set_state(version, State.END, error=reason)
            self._event(
                "load_failed",
                model=model.config.name,
                version=number,
                error=reason,
                again_in_seconds=pause,
            )
            return
        version.failures = 0
        self._set_state(version, State.AVAILABLE, served=served)
        self._event(
            "loaded",
            model=model.config.name,
            version=number,
            seconds=round(time.monotonic() - begin, 3),
            model_digest=served.metadata.get("model_digest"),
        )

    def retire(self, model: Model, number: int) -> None:
        """Takes a version out of the look-ups of requests; `close_retired` ends it."""
        version = model.versions[number]
        served = version.served
        assert served is not None
        version.note = ""
        self._set_state(version, State.UNLOADING)
        self._retired.append((model.config.name, number, version, served))

    def close_retired(self) -> None:
        """Frees retired versions, each after its last request is answered."""
        while self._retired:
            name, number, version, served = self._retired.pop()
            served.close()
            self._set_state(version, State.END)
            self._event("unloaded", model=name, version=number)

    def _set_state(
        self,
        version: Version,
        state: State,
        *,
        served: ServedVersion | None = None,
        error: str = "",
    ) -> None:
        with self._lock:
            version.state, version.served, version.error = state, served, error
