"""The manifest of examples, as ingest writes it."""

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from sigline.schemas import record


def identity(shards: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns what digests of a split's shards are of: all that the manifest says but their sizes.

    The digest of a shard's bytes covers its size, which manifests of earlier versions lack.
    """
    return {
        name: {key: value for key, value in shard.items() if key != record.SHARD_BYTES}
        for name, shard in shards.items()
    }


def shards(manifest: str, splits: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """Returns split, name and number of records of every shard of some splits.

    Raises:
        ValueError: If the examples are embedded already, a split is unknown or a name is no file's.
    """
    content = json.loads(manifest)
    known = content[record.MANIFEST_SPLITS]
    if unknown := sorted(set(splits) - set(known)):
        raise ValueError(
            f"Unknown splits. Received: {', '.join(unknown)}. Known splits: {', '.join(known)}"
        )
    if record.MANIFEST_EMBEDDINGS in content:
        raise ValueError(
            "The examples hold embeddings already; give the ones with images. "
            f"Received: {record.MANIFEST_EMBEDDINGS}={content[record.MANIFEST_EMBEDDINGS]}"
        )
    listed = [
        (split, name, shard["records"])
        for split in splits
        for name, shard in sorted(known[split]["shards"].items())
    ]
    # The manifest is input like any other: nothing is written outside of the output's folder.
    if bad := [name for _, name, _ in listed if posixpath.basename(name) != name]:
        raise ValueError(f"The manifest must name files of its splits. Received: {bad[0]!r}")
    return listed
