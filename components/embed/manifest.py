"""The manifest of embedded examples: that of the examples, and what embedded them."""

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from sigline.schemas import digests, record, signatures


def tower(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what identifies the image tower of an exported model, from its metadata.

    Raises:
        ValueError: If the model does not say which image tower it holds.
    """
    try:
        return {
            "image_digest": metadata["image_digest"],
            "dim": metadata["embedding_dim"],
            "sigline_version": metadata["sigline_version"],
        }
    except KeyError as error:
        raise ValueError(
            f"The model's {signatures.METADATA_FILE} has no {error}; export it again."
        ) from error


def claim(manifest: str, of_tower: Mapping[str, Any]) -> str:
    """Returns a text that names all that decides the embedded examples."""
    return digests.json_digest([json.loads(manifest), of_tower["image_digest"]])


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
        raise ValueError("The examples hold embeddings already; give the ones with images.")
    found = [
        (split, name, shard["records"])
        for split in splits
        for name, shard in sorted(known[split]["shards"].items())
    ]
    # The manifest is input like any other: nothing is written outside of the output's folder.
    if bad := [name for _, name, _ in found if posixpath.basename(name) != name]:
        raise ValueError(f"The manifest must name files of its splits. Received: {bad[0]!r}")
    return found


def embedded(
    manifest: str,
    written: Mapping[tuple[str, str], Mapping[str, Any]],
    splits: tuple[str, ...],
    of_tower: Mapping[str, Any],
) -> str:
    """Returns the manifest of embedded examples.

    Args:
        manifest: That of the examples.
        written: Records and digest of each embedded shard by split and name.
        splits: Splits that were embedded.
        of_tower: What embedded them; see `tower`.

    Raises:
        RuntimeError: If a shard is missing or holds another number of records than before.
    """
    content = json.loads(manifest)
    for split, name, records in shards(manifest, splits):
        found = written.get((split, name), {}).get("records", 0)
        if found != records:
            raise RuntimeError(
                "Embedding lost or doubled records; its output must not be used. Received: "
                f"{split}/{name} with {found} records instead of {records}"
            )
    result = {
        record.MANIFEST_SPLITS: {
            split: content[record.MANIFEST_SPLITS][split]
            | {"shards": {name: dict(x) for (s, name), x in sorted(written.items()) if s == split}}
            for split in splits
        },
        record.MANIFEST_EMBEDDINGS: dict(of_tower),
    }
    return json.dumps(result, sort_keys=True, indent=1)
