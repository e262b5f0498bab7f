"""Loads a version: checks its files, replays its warm-up requests, and creates its queues."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from sigline.schemas import signatures, signing, versions
from sigline.serving.server import warmup
from sigline.serving.server.batching import Batcher, BatchingConfig
from sigline.serving.server.engine import LoadedVersion
from sigline.serving.server.grids import GridsByLoad
from sigline.serving.server.served_version import ServedVersion

_METADATA = f"{signatures.ASSETS_DIR}/{signatures.METADATA_FILE}"
# Most problems of a version that an error message names.
_MAX_NAMED_PROBLEMS = 3


class VersionLoader:
    """Loads versions, all with the same settings."""

    def __init__(
        self,
        batching: BatchingConfig,
        *,
        observe: Callable[[str, str, int, float], None],
        warmed: Callable[[str, int, float], None],
        verifier: signing.Verifier | None,
        intra_op_parallelism: int | None,
    ):
        """Takes the settings that all versions share; see `ServedModels`."""
        self._batching = batching
        self._observe = observe
        self._warmed = warmed
        self._verifier = verifier
        self._intra_op_parallelism = intra_op_parallelism

    def load(self, name: str, number: int, directory: Path) -> ServedVersion:
        """Returns a version that is ready to serve.

        Raises:
            ValueError: If files are missing or changed, or a warm-up request fails. A model is a
                program, so loading it may raise any other exception too.
        """
        if not (directory / "saved_model.pb").is_file():
            raise ValueError(
                "A version must hold saved_model.pb; copy or export it again. "
                f"Received: {directory}"
            )
        # TensorFlow loads a model whose variables are missing, and every request then fails.
        if not (directory / "variables" / "variables.index").is_file():
            raise ValueError(
                "A version must hold variables/variables.index; copy or export it again. "
                f"Received: {directory}"
            )
        # Read once: the digests are compared with the manifest, and with the files later on.
        content = versions.content(directory)
        if os.path.lexists(directory / versions.MANIFEST):
            problems = versions.problems(directory, content)
            if problems:
                raise ValueError(
                    f"Version {number} does not match its manifest; publish the model again. "
                    f"Received: {directory}: {', '.join(problems[:_MAX_NAMED_PROBLEMS])}"
                )
        if self._verifier is not None:
            self._verifier.check(directory)
        metadata = _metadata(directory)
        engine = LoadedVersion(directory, number, intra_op_parallelism=self._intra_op_parallelism)
        try:
            begin = time.monotonic()
            count = warmup.replay(engine, directory)
            if count:
                self._warmed(str(directory), count, time.monotonic() - begin)
        except BaseException:
            engine.close()
            raise
        merged = engine.row_wise_signatures()
        if not self._batching.merge_images:
            merged = frozenset(x for x in merged if not _takes_images(engine, x))
        batcher = Batcher(
            engine.run,
            self._batching,
            merged=merged,
            observe=lambda signature, rows, waited: self._observe(name, signature, rows, waited),
        )
        rows, grids = self._batching.rows_per_smaller_grid, None
        if rows is not None:
            default = metadata.get(signatures.DEFAULT_GRID)
            grids = GridsByLoad(engine.signature_defs, default, rows)
        return ServedVersion(engine, batcher, metadata, content, grids)


def _metadata(directory: Path) -> dict:
    path = directory / _METADATA
    metadata = json.loads(path.read_text()) if path.is_file() else {}
    if not isinstance(metadata, dict):
        raise ValueError(
            f"{path} must hold a JSON object; export the model again. "
            f"Received: a {type(metadata).__name__}"
        )
    return metadata


def _takes_images(engine: LoadedVersion, signature: str) -> bool:
    return signatures.IMAGE_BYTES in engine.signature_defs[signature].inputs
