"""The manifest of embedded examples: that of the examples, and what embedded them."""

import json
from collections.abc import Mapping
from typing import Any

from sigline.schemas import digests, examples, record, signatures


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
            f"The model's {signatures.METADATA_FILE} has no {error}; export it again. "
            f"Received: {', '.join(sorted(metadata)) or 'nothing'}"
        ) from error


def claim(manifest: str, of_tower: Mapping[str, Any]) -> str:
    """Returns a text that names all that decides the embedded examples."""
    return digests.json_digest([json.loads(manifest), of_tower["image_digest"]])


def embedded(
    manifest: str,
    written: Mapping[tuple[str, str], Mapping[str, Any]],
    splits: tuple[str, ...],
    of_tower: Mapping[str, Any],
) -> str:
    """Returns the manifest of embedded examples.

    Args:
        manifest: The manifest of the examples.
        written: Records and digest of each embedded shard by split and name.
        splits: Splits that were embedded.
        of_tower: What embedded them; see `tower`.

    Raises:
        RuntimeError: If a shard is missing or holds another number of records than before.
    """
    content = json.loads(manifest)
    for split, name, records in examples.shards(manifest, splits):
        count = written.get((split, name), {}).get("records", 0)
        if count != records:
            raise RuntimeError(
                "Embedding lost or doubled records; its output must not be used. Received: "
                f"{split}/{name} with {count} records instead of {records}"
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
