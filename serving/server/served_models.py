"""Loads, swaps and unloads the versions of models while requests go on.

A new version is loaded beside the old one and warmed up; then requests go to it, the old one
finishes those it has and is unloaded. The last version that serves is never unloaded because a
folder is empty, away or damaged. The same holds where a model config names another folder: the old
one serves until a version of the new one does. What does not load is tried again, less and less
often, and at once when its files change. A version whose files are overwritten while it serves goes
on as it was loaded.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc

from sigline.schemas import signing, versions
from sigline.serving.server import version_files
from sigline.serving.server.batching import BatchingConfig
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.model_config import ModelConfig
from sigline.serving.server.model_versions import (
    Change,
    Model,
    Version,
    kept,
    why_empty,
    why_nothing_serves,
)
from sigline.serving.server.served_version import Served, State, VersionStatus
from sigline.serving.server.version_loader import VersionLoader

_LONGEST_PAUSE_SECONDS = 60.0


class ServedModels:
    """The models of a server and their versions."""

    def __init__(
        self,
        models: Sequence[ModelConfig],
        batching: BatchingConfig,
        *,
        observe: Callable[[str, str, int, float], None] = lambda *_: None,
        warmed: Callable[[str, int, float], None] = lambda *_: None,
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
            warmed: Is told the folder of a version, how many warm-up requests it ran, and the
                seconds that they took.
            event: Is told what happens to versions: a name and fields.
            poll_seconds: Time between two looks at the folders.
            verifier: Knows who may have signed a version; None to serve unsigned ones too.
            intra_op_parallelism: Most threads that share an operation; see `LoadedVersion`.
        """
        self._loader = VersionLoader(
            batching,
            observe=observe,
            warmed=warmed,
            verifier=verifier,
            intra_op_parallelism=intra_op_parallelism,
        )
        self._event = event
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        # One change of what is loaded at a time.
        self._changing = threading.Lock()
        self._models = {config.name: Model(config) for config in models}
        # Versions that no request finds any more, to be closed when those that they have end.
        self._retired: list[tuple[str, int, Version, Served]] = []
        self._change: Change | None = None
        # Set when there is a change, or at the end.
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="versions", daemon=True)

    def start(self) -> None:
        """Loads what there is, and keeps looking for more.

        Raises:
            ValueError: If there are models and none of them has a version that can be served; the
                message has the reasons. One that has a version is not kept from serving by another.
        """
        self.look()
        reasons = self.not_served()
        if reasons and len(reasons) == len(self._models):
            raise ValueError("; ".join(reasons.values()))
        for name, reason in reasons.items():
            self._event("model_not_served", model=name, error=reason)
        self._poller.start()

    def stop(self) -> None:
        """Unloads everything, after the requests that there are."""
        self._stopped.set()
        self._wake.set()
        if self._poller.is_alive():
            self._poller.join()
        with self._lock:
            change, self._change = self._change, None
        if change is not None:
            change.end(grpc.StatusCode.UNAVAILABLE, "The server stops")
        with self._changing:
            for model in self._models.values():
                for part in (model, model.target):
                    for number in part.available():
                        self._retire(part, number)
            self._close_retired()

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
            found = {} if model is None else model.target.versions | model.versions
            states = [item.status(n) for n, item in sorted(found.items(), reverse=True)]
        if not states:
            raise RequestFailed(
                grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}"
            )
        if version is not None:
            states = [item for item in states if item.version == version]
        if not states:
            raise RequestFailed(
                grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {name}"
            )
        return states

    def states(self) -> dict[tuple[str, int], State]:
        """Returns the states of all versions, by model and number."""
        return {key: version.state for key, version in self._all().items()}

    def overwritten(self) -> dict[tuple[str, int], bool]:
        """Returns of versions that serve whether their files changed since they were loaded."""
        return {
            key: bool(version.note)
            for key, version in self._all().items()
            if version.state is State.AVAILABLE
        }

    def _all(self) -> dict[tuple[str, int], Version]:
        with self._lock:
            return {
                (name, number): version
                for name, model in self._models.items()
                for number, version in (model.target.versions | model.versions).items()
            }

    def knows(self, name: str) -> bool:
        """Returns whether there is such a model, whether it serves or not."""
        with self._lock:
            return name in self._models

    def ready(self) -> bool:
        """Returns whether a model has a version that serves, or there are no models.

        One whose folder is empty must not take the others out of service.
        """
        with self._lock:
            return not self._models or any(model.available() for model in self._models.values())

    def not_served(self) -> dict[str, str]:
        """Returns why models of the config have no version that serves, by name."""
        with self._lock:
            return {
                name: why_nothing_serves(model.target)
                for name, model in self._models.items()
                if not model.is_leaving and not model.target.available()
            }

    def served(self) -> dict[str, list[Served]]:
        """Returns the versions that serve, by model."""
        with self._lock:
            return {
                name: [v.served for v in model.versions.values() if v.served is not None]
                for name, model in self._models.items()
            }

    def reload(self, models: Sequence[ModelConfig], *, timeout_seconds: float = 300.0) -> None:
        """Replaces what is served; returns when each model has been loaded, or was tried.

        What served goes on serving until what replaces it does. What could not be loaded is tried
        again later, as any version.

        Args:
            models: What to serve from now on.
            timeout_seconds: How long to wait; loading goes on after that.

        Raises:
            RequestFailed: FAILED_PRECONDITION if a model has no version, or a label or a policy
                names one that is not served; DEADLINE_EXCEEDED if it takes longer; ABORTED if
                another config came before its turn. The message has the reasons.
        """
        change = Change(models)
        with self._lock:
            if self._stopped.is_set():
                raise RequestFailed(grpc.StatusCode.UNAVAILABLE, "The server stops")
            previous, self._change = self._change, change
            self._wake.set()
        if previous is not None:
            previous.end(grpc.StatusCode.ABORTED, "Another config came before this one's turn")
        if not change.done.wait(max(0.0, timeout_seconds)):
            empty = [
                why_empty(model) for model in models if not versions.directories(model.base_path)
            ]
            reasons = empty or ["versions are still being loaded"]
            raise RequestFailed(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"The config was taken, but not all of it serves yet: {'; '.join(reasons)}",
            )
        if change.failure is not None:
            raise change.failure

    def look(self) -> None:
        """Brings what is loaded in line with what stands in the folders."""
        with self._changing:
            self._look()
            self._close_retired()

    def _poll(self) -> None:
        while True:
            self._wake.wait(self._poll_seconds)
            if self._stopped.is_set():
                return
            with self._lock:
                change, self._change = self._change, None
                self._wake.clear()
            try:
                with self._changing:
                    if change is not None:
                        self._apply(change.models)
                    self._look()
                    if change is not None:
                        problems = self._problems()
                        change.end(grpc.StatusCode.FAILED_PRECONDITION, "; ".join(problems))
                    self._close_retired()
            except Exception as error:  # The polls must not end with one of them.
                self._event("look_failed", error=repr(error))
                if change is not None:
                    change.end(grpc.StatusCode.INTERNAL, f"The server failed: {error!r}")

    def _apply(self, models: Sequence[ModelConfig]) -> None:
        """Takes up a config; what it names is loaded by the next look."""
        with self._lock:
            for config in models:
                model = self._models.get(config.name)
                if model is None or not model.available():
                    model = self._models[config.name] = kept(model, config)
                elif version_files.is_same_folder(model.config.base_path, config.base_path):
                    model.config, model.successor = config, None
                else:
                    model.successor = kept(model.successor, config)
                model.is_leaving = False
            names = {config.name for config in models}
            for name, model in list(self._models.items()):
                if name in names:
                    continue
                model.is_leaving, model.successor = True, None
                if not model.available():
                    del self._models[name]

    def _problems(self) -> list[str]:
        """Returns what of the config is not served, and what serves in its place."""
        problems = []
        with self._lock:
            models = [x for x in self._models.values() if not x.is_leaving]
            leaving = [x.config.name for x in self._models.values() if x.is_leaving]
        for model in models:
            target, name = model.target, model.config.name
            served = target.available()
            if not served:
                reason = why_nothing_serves(target)
                if target is not model:
                    reason += f"; {model.config.base_path} goes on serving"
                problems.append(reason)
                continue
            problems += [
                f"label {label} of {name} names version {number}, which is not served"
                for label, number in sorted(target.config.labels.items())
                if number not in served
            ]
            problems += [
                f"the policy of {name} names version {number}, which is not served"
                for number in target.config.policy.specific
                if number not in served
            ]
        if leaving:
            problems.append(f"{', '.join(leaving)} goes on serving until the others do")
        return problems

    def _look(self) -> None:
        for model in list(self._models.values()):
            if model.is_leaving:
                continue
            target = model.target
            try:
                self._update(target)
            # What cannot be read of one model keeps no other waiting.
            except OSError as error:
                self._note(target, "folder_not_read", str(error))
            if target is not model and target.can_replace(model):
                with self._lock:
                    self._models[model.config.name] = target
                self._event(
                    "folder_changed",
                    model=target.config.name,
                    base_path=target.config.base_path,
                    before=model.config.base_path,
                )
                for number in model.available():
                    self._retire(model, number)
        self._let_go()

    def _let_go(self) -> None:
        """Ends models that the config names no more, once those that it names serve."""
        with self._lock:
            leaving = [x for x in self._models.values() if x.is_leaving]
            if not all(x.available() for x in self._models.values() if not x.is_leaving):
                return
            for model in leaving:
                del self._models[model.config.name]
        for model in leaving:
            for number in model.available():
                self._retire(model, number)

    def _note(self, model: Model, event: str, problem: str) -> None:
        """Logs what is wrong with a folder, once as long as it stays so."""
        if problem != model.problem:
            fields = {"model": model.config.name, "base_path": model.config.base_path}
            self._event(event, **fields, error=problem)
        model.problem = problem

    def _update(self, model: Model) -> None:
        base = Path(model.config.base_path)
        found = versions.directories(base)
        if not found:
            self._note(model, "no_versions", version_files.why_empty(base))
            return
        model.problem = ""
        wanted = model.config.policy.of(found)
        with self._lock:
            for number in wanted:
                model.versions.setdefault(number, Version())
        for number in wanted:
            directory = found.get(number, base / str(number))
            if model.versions[number].state is State.AVAILABLE:
                self._check_unchanged(model, number, directory)
            elif model.versions[number].state is not State.LOADING:
                self._try(model, number, directory)
        available = model.available()
        with self._lock:
            labels = {x: n for x, n in model.config.labels.items() if n in available}
            kept = {x: n for x, n in model.labels.items() if x in model.config.labels}
            model.labels = kept | labels
        # The old serves until one of the new does, and as long as a label names it.
        if any(number in available for number in wanted):
            for number in available:
                if number not in wanted and number not in model.labels.values():
                    self._retire(model, number)
        with self._lock:
            for number in [n for n in model.versions if n not in wanted and n not in found]:
                if model.versions[number].state == State.END:
                    del model.versions[number]

    def _check_unchanged(self, model: Model, number: int, directory: Path) -> None:
        """Tells of a version that serves when its files are no longer those that were loaded."""
        version = model.versions[number]
        files = version_files.snapshot(directory)
        # What is away is not overwritten; and what did not change since need not be read again.
        if files == version.files or version.served is None or not directory.is_dir():
            return
        names = version_files.differing(version.served.content, directory)
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

    def _try(self, model: Model, number: int, directory: Path) -> None:
        version = model.versions[number]
        files = version_files.snapshot(directory)
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
            served = self._loader.load(model.config.name, number, directory)
            if version_files.snapshot(directory) != files:
                served.close()
                raise ValueError(f"{directory} changed while it was loaded")
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

    def _retire(self, model: Model, number: int) -> None:
        """Lets no more requests find a version; `_close_retired` ends it."""
        version = model.versions[number]
        served = version.served
        assert served is not None
        version.note = ""
        self._set(version, State.UNLOADING)
        self._retired.append((model.config.name, number, version, served))

    def _close_retired(self) -> None:
        """Frees what was retired, after the requests that it has."""
        while self._retired:
            name, number, version, served = self._retired.pop()
            served.close()
            self._set(version, State.END)
            self._event("unloaded", model=name, version=number)

    def _set(
        self, version: Version, state: State, *, served: Served | None = None, error: str = ""
    ) -> None:
        with self._lock:
            version.state, version.served, version.error = state, served, error
