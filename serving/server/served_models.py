"""Loads, swaps and unloads the versions of models while the server answers requests.

A swap loads and warms up the new version beside the old one, then sends new requests to it. The old
version finishes its own requests and is unloaded. The last version that serves is never unloaded
because a folder is empty, missing or damaged. When a model config names another folder, the old
folder's version serves until a version of the new folder does.

Changes are made one at a time. Requests only look up a version and count themselves in it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import grpc

from sigline.schemas import signing, versions
from sigline.serving.server import version_files
from sigline.serving.server.batching import BatchingConfig
from sigline.serving.server.failures import RequestFailed
from sigline.serving.server.model_config import ModelConfig
from sigline.serving.server.model_versions import (
    ConfigChange,
    Model,
    Version,
    why_empty,
    why_nothing_serves,
    with_config,
)
from sigline.serving.server.served_version import ServedVersion, State, VersionStatus
from sigline.serving.server.version_loader import VersionLoader
from sigline.serving.server.version_updates import VersionUpdates


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
        """Takes what to serve; `start` loads it.

        Args:
            models: What to serve.
            batching: How requests are computed together.
            observe: Called with the model, the signature, the rows of each batch and how many
                seconds its first request waited.
            warmed: Called with the folder of a version, how many warm-up requests it ran, and the
                seconds that they took.
            event: Called with the name and fields of each event of a version, for the log.
            poll_seconds: Seconds between two checks of the folders.
            verifier: Checks the signature of a version; None to serve unsigned versions too.
            intra_op_parallelism: Most threads that share an operation; see `LoadedVersion`.
        """
        loader = VersionLoader(
            batching,
            observe=observe,
            warmed=warmed,
            verifier=verifier,
            intra_op_parallelism=intra_op_parallelism,
        )
        self._event = event
        self._poll_seconds = poll_seconds
        # Guards the tables below. Held for look-ups only, never while a model is loaded, so that
        # requests do not wait for a swap.
        self._lock = threading.Lock()
        self._updates = VersionUpdates(loader, self._lock, event)
        # Held for the whole of an update: a version must not be loaded twice at a time.
        self._changing = threading.Lock()
        self._models = {config.name: Model(config) for config in models}
        self._change: ConfigChange | None = None
        # Set by `reload` and `stop`, so that the thread does not sleep until its next poll.
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="versions", daemon=True)

    def start(self) -> None:
        """Loads the versions that the folders hold, and begins to watch for others.

        Raises:
            ValueError: If there are models and none of them has a version that can be served; the
                message has the reasons. A single model that cannot be served only logs an event.
        """
        self.update()
        reasons = self.not_served()
        if reasons and len(reasons) == len(self._models):
            raise ValueError("; ".join(reasons.values()))
        for name, reason in reasons.items():
            self._event("model_not_served", model=name, error=reason)
        self._poller.start()

    def stop(self) -> None:
        """Unloads all versions, after their requests are answered."""
        self._stopped.set()
        self._wake.set()
        if self._poller.is_alive():
            self._poller.join()
        with self._lock:
            change, self._change = self._change, None
        if change is not None:
            change.end(grpc.StatusCode.UNAVAILABLE, "The server is stopping")
        with self._changing:
            for model in self._models.values():
                for part in (model, model.target):
                    for number in part.available():
                        self._updates.retire(part, number)
            self._updates.close_retired()

    @contextlib.contextmanager
    def lease(
        self, name: str, *, version: int | None = None, label: str = ""
    ) -> Iterator[ServedVersion]:
        """Yields a version that stays loaded until the context ends.

        Args:
            name: The model.
            version: Its version; the newest that is served by default.
            label: The label of a version, instead of its number.

        Raises:
            RequestFailed: If there is no such model, version or label.
        """
        with self._lock:
            served = self._find(name, version, label)
            # Counted under the same lock, so that a swap cannot unload the version in between.
            served.acquire()
        try:
            yield served
        finally:
            served.release()

    def _find(self, name: str, version: int | None, label: str) -> ServedVersion:
        model = self._models.get(name)
        # The messages of this method are those of TF Serving, which clients may match.
        request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
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
        raise RequestFailed(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}")

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """Returns the states of a model's versions, the newest first.

        Raises:
            RequestFailed: If there is no such model, or no such version of it.
        """
        with self._lock:
            model = self._models.get(name)
            # Versions of a new folder that is still being loaded are shown too.
            by_number = {} if model is None else model.target.versions | model.versions
            states = [item.status(n) for n, item in sorted(by_number.items(), reverse=True)]
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
        return {key: version.state for key, version in self._all_versions().items()}

    def overwritten(self) -> dict[tuple[str, int], bool]:
        """Returns whether the files of each version that serves changed since it was loaded."""
        return {
            key: bool(version.note)
            for key, version in self._all_versions().items()
            if version.state is State.AVAILABLE
        }

    def _all_versions(self) -> dict[tuple[str, int], Version]:
        with self._lock:
            return {
                (name, number): version
                for name, model in self._models.items()
                for number, version in (model.target.versions | model.versions).items()
            }

    def has_model(self, name: str) -> bool:
        """Returns whether the config names a model, even if none of its versions serves."""
        with self._lock:
            return name in self._models

    def ready(self) -> bool:
        """Returns whether a model has a version that serves, or there are no models.

        A model whose folder is empty must not take the others out of service.
        """
        with self._lock:
            return not self._models or any(model.available() for model in self._models.values())

    def not_served(self) -> dict[str, str]:
        """Returns why models of the config have no version that serves, by name."""
        with self._lock:
            return {
                name: why_nothing_serves(model.target)
                for name, model in self._models.items()
                if not model.is_removed and not model.target.available()
            }

    def served(self) -> dict[str, list[ServedVersion]]:
        """Returns the versions that serve, by model."""
        with self._lock:
            return {
                name: [v.served for v in model.versions.values() if v.served is not None]
                for name, model in self._models.items()
            }

    def reload(self, models: Sequence[ModelConfig], *, timeout_seconds: float = 300.0) -> None:
        """Replaces the served models; returns when loading of each has succeeded or failed.

        Each version goes on serving until its replacement does. A version that could not be loaded
        is tried again later, as any other.

        Args:
            models: What to serve from now on.
            timeout_seconds: How long to wait; loading continues after that.

        Raises:
            RequestFailed: FAILED_PRECONDITION if a model has no version, or a label or a policy
                names one that is not served; DEADLINE_EXCEEDED if it takes longer; ABORTED if
                another config arrived before this one was applied. The message has the reasons.
        """
        change = ConfigChange(models)
        with self._lock:
            if self._stopped.is_set():
                raise RequestFailed(
                    grpc.StatusCode.UNAVAILABLE,
                    "The server is stopping; send the config again when it is back",
                )
            previous, self._change = self._change, change
            self._wake.set()
        if previous is not None:
            previous.end(
                grpc.StatusCode.ABORTED, "Another config arrived before this one was applied"
            )
        if not change.done.wait(max(0.0, timeout_seconds)):
            empty = [
                why_empty(model) for model in models if not versions.directories(model.base_path)
            ]
            reasons = empty or ["versions are still being loaded"]
            raise RequestFailed(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"The config was accepted, but not all of it serves yet: {'; '.join(reasons)}",
            )
        if change.failure is not None:
            raise change.failure

    def update(self) -> None:
        """Loads and unloads versions, so that they match the config and the folders."""
        with self._changing:
            self._update_all()
            self._updates.close_retired()

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
                    self._update_all()
                    if change is not None:
                        problems = self._problems()
                        change.end(grpc.StatusCode.FAILED_PRECONDITION, "; ".join(problems))
                    self._updates.close_retired()
            except Exception as error:  # The thread must survive, or no version is loaded again.
                self._event("look_failed", error=repr(error))
                if change is not None:
                    change.end(grpc.StatusCode.INTERNAL, f"The server failed: {error!r}")

    def _apply(self, models: Sequence[ModelConfig]) -> None:
        """Applies a config; the next update loads the versions that it names."""
        with self._lock:
            for config in models:
                model = self._models.get(config.name)
                # Nothing to keep serving: the folder may change at once.
                if model is None or not model.available():
                    model = self._models[config.name] = with_config(model, config)
                elif version_files.is_same_folder(model.config.base_path, config.base_path):
                    model.config, model.successor = config, None
                else:
                    model.successor = with_config(model.successor, config)
                model.is_removed = False
            names = {config.name for config in models}
            for name, model in list(self._models.items()):
                if name in names:
                    continue
                model.is_removed, model.successor = True, None
                if not model.available():
                    del self._models[name]

    def _problems(self) -> list[str]:
        """Returns which parts of the config are not served, and what serves in their place."""
        problems = []
        with self._lock:
            models = [x for x in self._models.values() if not x.is_removed]
            removed = [x.config.name for x in self._models.values() if x.is_removed]
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
        if removed:
            problems.append(f"{', '.join(removed)} goes on serving until the others do")
        return problems

    def _update_all(self) -> None:
        for model in list(self._models.values()):
            if model.is_removed:
                continue
            target = model.target
            self._updates.update(target)
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
                    self._updates.retire(model, number)
        self._drop_removed()

    def _drop_removed(self) -> None:
        """Ends models that the config no longer names, once those that it names serve."""
        with self._lock:
            removed = [x for x in self._models.values() if x.is_removed]
            if not all(x.available() for x in self._models.values() if not x.is_removed):
                return
            for model in removed:
                del self._models[model.config.name]
        for model in removed:
            for number in model.available():
                self._updates.retire(model, number)
