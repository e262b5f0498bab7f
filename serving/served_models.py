"""Loads, swaps and unloads the versions of models while requests go on.

A new version is loaded beside the old one and warmed up; then requests go to it, the old one
finishes those it has and is unloaded. The last version that serves is never unloaded because a
folder is empty, away or damaged. What does not load is tried again, less and less often, and at
once when its files change.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sigline.schemas import signatures, versions
from sigline.serving import signing, warmup
from sigline.serving.batching import Batcher, BatchingConfig
from sigline.serving.engine import LoadedVersion
from sigline.serving.failures import RequestFailed
from sigline.serving.model_config import ModelConfig
from sigline.serving.served_version import Served, State, VersionStatus

_LONGEST_PAUSE_SECONDS = 60.0
_METADATA = f"{signatures.ASSETS_DIR}/{signatures.METADATA_FILE}"


@dataclass
class _Version:
    state: State = State.START
    served: Served | None = None
    error: str = ""
    files: tuple = ()
    failures: int = 0
    again_at: float = 0.0

    def status(self, number: int) -> VersionStatus:
        return VersionStatus(number, self.state, self.error)


@dataclass
class _Model:
    config: ModelConfig
    versions: dict[int, _Version] = field(default_factory=dict)
    # Labels as requests see them: one moves when the version that it is to name serves.
    labels: dict[str, int] = field(default_factory=dict)
    missing: bool = False

    def available(self) -> list[int]:
        return sorted([n for n, v in self.versions.items() if v.state is State.AVAILABLE])


class ServedModels:
    """The models of a server and their versions."""

    def __init__(
        self,
        models: Sequence[ModelConfig],
        batching: BatchingConfig,
        *,
        observe: Callable[[str, str, int, float], None] = lambda *_: None,
        event: Callable[..., None] = lambda name, **fields: None,
        poll_seconds: float = 1.0,
        verifier: signing.Verifier | None = None,
        intra_op_parallelism: int | None = None,
    ):
        """Knows what to serve; `start` loads it.

        Args:
            models: What to serve.
            batching: How requests are computed together.
            observe: Is told the model, the signature, the rows of each batch and how long
                it waited.
            event: Is told what happens to versions: a name and fields.
            poll_seconds: Time between two looks at the folders.
            verifier: Knows who may have signed a version; None to serve unsigned ones too.
            intra_op_parallelism: Most threads that share an operation; see `LoadedVersion`.
        """
        self._batching = batching
        self._observe = observe
        self._event = event
        self._poll_seconds = poll_seconds
        self._verifier = verifier
        self._intra_op_parallelism = intra_op_parallelism
        self._lock = threading.Lock()
        # One change of what is loaded at a time.
        self._changing = threading.Lock()
        self._models = {config.name: _Model(config) for config in models}
        self._retired: list[_Model] = []
        self._stopped = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="versions", daemon=True)

    def start(self) -> None:
        """Loads what there is, and keeps looking for more.

        Raises:
            ValueError: If a model has no version that can be served; the message has the reason.
        """
        self.look()
        for model in self._models.values():
            if not model.available():
                raise ValueError(_why_nothing_serves(model))
        self._poller.start()

    def stop(self) -> None:
        """Unloads everything, after the requests that there are."""
        self._stopped.set()
        if self._poller.is_alive():
            self._poller.join()
        with self._changing:
            for model in [*self._models.values(), *self._retired]:
                for number in model.available():
                    self._unload(model, number)

    @contextlib.contextmanager
    def lease(self, name: str, *, version: int | None = None, label: str = "") -> Iterator[Served]:
        """Yields a version that stays loaded until the end.

        Args:
            name: The model.
            version: Its version; the newest that is served by default.
            label: The label of one, instead.

        Raises:
            RequestFailed: If there is no such model, version or label.
        """
        with self._lock:
            served = self._find(name, version, label)
            served.enter()
        try:
            yield served
        finally:
            served.leave()

    def _find(self, name: str, version: int | None, label: str) -> Served:
        model = self._models.get(name)
        asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        if model is not None:
            if label:
                version = model.labels.get(label)
                if version is None:
                    raise RequestFailed(
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"Unrecognized servable version label: {label}",
                    )
            available = model.available()
            number = available[-1] if version is None and available else version
            if number in available:
                served = model.versions[number].served
                assert served is not None
                return served
        raise RequestFailed(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """Returns the states of a model's versions, the newest first.

        Raises:
            RequestFailed: If there is no such model, or no such version of it.
        """
        with self._lock:
            model = self._models.get(name)
            found = [] if model is None else sorted(model.versions.items(), reverse=True)
            states = [item.status(n) for n, item in found if version in (None, n)]
        if not states:
            what = name if version is None else f"{name} version {version}"
            raise RequestFailed(
                grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {what}"
            )
        return states

    def states(self) -> dict[tuple[str, int], State]:
        """Returns the states of all versions, by model and number."""
        with self._lock:
            return {
                (name, number): version.state
                for name, model in self._models.items()
                for number, version in model.versions.items()
            }

    def knows(self, name: str) -> bool:
        """Returns whether there is such a model, whether it serves or not."""
        with self._lock:
            return name in self._models

    def ready(self) -> bool:
        """Returns whether every model has a version that serves."""
        with self._lock:
            return all(model.available() for model in self._models.values())

    def served(self) -> dict[str, list[Served]]:
        """Returns the versions that serve, by model."""
        with self._lock:
            return {
                name: [v.served for v in model.versions.values() if v.served is not None]
                for name, model in self._models.items()
            }

    def reload(self, models: Sequence[ModelConfig], *, timeout_seconds: float = 300.0) -> None:
        """Replaces what is served; returns when every model serves, as far as it can.

        Raises:
            RequestFailed: If a label names a version that is not served, or a model has none.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changing:
            with self._lock:
                old, self._models = self._models, {}
                for config in models:
                    model = old.get(config.name)
                    # In another folder the same number is another version.
                    if model is None or model.config.base_path != config.base_path:
                        model = _Model(config)
                    else:
                        del old[config.name]
                    model.config = config
                    self._models[config.name] = model
                self._retired += old.values()
            self._look()
        while not (ready := self.ready()) and time.monotonic() < deadline:
            if self._stopped.wait(self._poll_seconds):
                break
            self.look()
        problems = [_why_nothing_serves(m) for m in self._models.values() if not m.available()]
        for model in self._models.values():
            problems += [
                f"label {label} of {model.config.name} names version {number}, which is not served"
                for label, number in sorted(model.config.labels.items())
                if number not in model.available()
            ]
        if problems or not ready:
            raise RequestFailed(grpc.StatusCode.FAILED_PRECONDITION, "; ".join(problems))

    def look(self) -> None:
        """Brings what is loaded in line with what stands in the folders."""
        with self._changing:
            self._look()

    def _look(self) -> None:
        for model in list(self._models.values()):
            try:
                self._update(model)
            # What cannot be read of one model keeps no other waiting.
            except OSError as error:
                name = model.config.name
                self._event("folder_not_read", model=name, error=str(error))
        for model in self._retired:
            for number in model.available():
                self._unload(model, number)
        self._retired.clear()

    def _poll(self) -> None:
        while not self._stopped.wait(self._poll_seconds):
            try:
                self.look()
            except Exception as error:  # The polls must not end with one of them.
                self._event("look_failed", error=repr(error))

    def _update(self, model: _Model) -> None:
        base = Path(model.config.base_path)
        found = versions.directories(base)
        if not found:
            # Before anything was there it is the caller's to say.
            if model.versions and not model.missing:
                self._event("no_versions", model=model.config.name, base_path=str(base))
            model.missing = True
            return
        model.missing = False
        wanted = model.config.policy.of(found)
        with self._lock:
            for number in wanted:
                model.versions.setdefault(number, _Version())
        for number in wanted:
            if model.versions[number].state not in (State.AVAILABLE, State.LOADING):
                self._try(model, number, found.get(number, base / str(number)))
        available = model.available()
        with self._lock:
            labels = {x: n for x, n in model.config.labels.items() if n in available}
            kept = {x: n for x, n in model.labels.items() if x in model.config.labels}
            model.labels = kept | labels
        # The old serves until one of the new does, and as long as a label names it.
        if any(number in available for number in wanted):
            for number in available:
                if number not in wanted and number not in model.labels.values():
                    self._unload(model, number)
        with self._lock:
            for number in [n for n in model.versions if n not in wanted and n not in found]:
                if model.versions[number].state == State.END:
                    del model.versions[number]

    def _try(self, model: _Model, number: int, directory: Path) -> None:
        version = model.versions[number]
        files = _files(directory)
        if files == version.files and time.monotonic() < version.again_at:
            return
        if files != version.files:
            version.failures = 0
        # What is being copied changes between two looks; what was published whole has a manifest.
        whole = (directory / versions.MANIFEST).is_file()
        if not whole and version.files != files and model.available():
            version.files = files
            return
        version.files = files
        begin = time.monotonic()
        self._set(version, State.LOADING)
        try:
            served = self._load(model.config.name, number, directory)
        # A model is a program: whatever it raises is why it is not served.
        except Exception as error:
            version.failures += 1
            pause = min(2.0 ** (version.failures - 1), _LONGEST_PAUSE_SECONDS)
            version.again_at = time.monotonic() + pause
            reason = (str(error).strip() or repr(error)).splitlines()[0][:500]
            self._set(version, State.END, error=reason)
            self._event(
                "load_failed",
                model=model.config.name,
                version=number,
                error=reason,
                again_in_seconds=pause,
            )
            return
        version.failures = 0
        self._set(version, State.AVAILABLE, served=served)
        self._event(
            "loaded",
            model=model.config.name,
            version=number,
            seconds=round(time.monotonic() - begin, 3),
            model_digest=served.metadata.get("model_digest"),
        )

    def _load(self, name: str, number: int, directory: Path) -> Served:
        if not (directory / "saved_model.pb").is_file():
            raise ValueError(f"{directory} holds no saved_model.pb")
        # TensorFlow loads a model without its variables, and every request then fails.
        if not (directory / "variables" / "variables.index").is_file():
            raise ValueError(f"{directory} holds no variables/variables.index")
        if self._verifier is not None:
            self._verifier.check(directory)
        if (directory / versions.MANIFEST).is_file() and versions.verify(directory) is None:
            raise ValueError(
                f"Version {number} does not match its manifest; publish the model again. "
                f"Received: {directory}"
            )
        metadata = _metadata(directory)
        engine = LoadedVersion(directory, number, intra_op_parallelism=self._intra_op_parallelism)
        try:
            warmup.replay(engine, directory)
        except BaseException:
            engine.close()
            raise
        merged = engine.by_row()
        if not self._batching.merge_images:
            merged = frozenset(x for x in merged if not _takes_images(engine, x))
        batcher = Batcher(
            engine.run,
            self._batching,
            merged=merged,
            observe=lambda signature, rows, waited: self._observe(name, signature, rows, waited),
        )
        return Served(engine, batcher, metadata)

    def _unload(self, model: _Model, number: int) -> None:
        version = model.versions[number]
        served = version.served
        # From here on no request finds it.
        self._set(version, State.UNLOADING)
        if served is not None:
            served.close()
        self._set(version, State.END)
        self._event("unloaded", model=model.config.name, version=number)

    def _set(
        self, version: _Version, state: State, *, served: Served | None = None, error: str = ""
    ) -> None:
        with self._lock:
            version.state, version.served, version.error = state, served, error


def _metadata(directory: Path) -> dict:
    path = directory / _METADATA
    found = json.loads(path.read_text()) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return found


def _takes_images(engine: LoadedVersion, signature: str) -> bool:
    return signatures.IMAGE_BYTES in engine.signature_defs[signature].inputs


def _files(directory: Path) -> tuple:
    """Returns what changes when a file of a version does: names, sizes and times."""
    found = []
    for path in sorted(directory.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _why_nothing_serves(model: _Model) -> str:
    reasons = [
        f"version {number}: {version.error}"
        for number, version in sorted(model.versions.items())
        if version.error
    ]
    if reasons:
        return f"No version of {model.config.name} can be served: " + "; ".join(reasons)
    return (
        "base_path must hold a version directory such as 1/saved_model.pb. "
        f"Received: base_path={model.config.base_path}"
    )
