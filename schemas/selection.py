"""A selection: which records of a split are trained on, without writing them again.

A folder of the same name as the split holds `selection.json`, which names the split's folder, its
manifest's digest and, for each shard, how many records are chosen and which: a bit for each record,
the first record in the highest bit of the first byte, in base 64. Below `keys` there is, for each
shard, a list of their keys, a JSON string in each line, for people and other tools.
"""

import base64
import json
from dataclasses import dataclass

SELECTION_FILE = "selection.json"
KEYS_FOLDER = "keys"


@dataclass(frozen=True)
class ShardSelection:
    """The chosen records of one shard.

    Attributes:
        records: How many records the shard has.
        selected: How many are chosen.
        bits: A bit for each record.
    """

    records: int
    selected: int
    bits: bytes


@dataclass(frozen=True)
class Selection:
    """The chosen records of a split.

    Attributes:
        split_dir: Folder of the split's shards.
        shards_digest: Digest of the split's shards as their manifest names them.
        shards: The chosen records by name of the shard.
    """

    split_dir: str
    shards_digest: str
    shards: dict[str, ShardSelection]

    @property
    def selected(self) -> int:
        """How many records are chosen."""
        return sum(shard.selected for shard in self.shards.values())

    def to_json(self) -> str:
        """Returns the content of `selection.json`."""
        shards = {
            name: {
                "records": shard.records,
                "selected": shard.selected,
                "bits": base64.b64encode(shard.bits).decode(),
            }
            for name, shard in self.shards.items()
        }
        content = {
            "split_dir": self.split_dir,
            "shards_digest": self.shards_digest,
            "shards": shards,
        }
        return json.dumps(content, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Selection":
        """Reads a selection.

        Raises:
            ValueError: If the text is not a selection, or its counts do not match its bits.
        """
        try:
            content = json.loads(text)
            shards = {
                name: ShardSelection(
                    int(shard["records"]),
                    int(shard["selected"]),
                    base64.b64decode(shard["bits"], validate=True),
                )
                for name, shard in content["shards"].items()
            }
            selection = cls(str(content["split_dir"]), str(content["shards_digest"]), shards)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{SELECTION_FILE} must be a selection, as `sigline data select` writes it. "
                f"Received: {error!r}"
            ) from None
        for name, shard in shards.items():
            size = -(-shard.records // 8)
            number = int.from_bytes(shard.bits, "big")
            if len(shard.bits) != size or number.bit_count() != shard.selected:
                raise ValueError(
                    f"{SELECTION_FILE} must have as many bits as it says; select again. "
                    f"Received: {name} with {shard.records} records, {shard.selected} selected, "
                    f"{len(shard.bits)} bytes of bits"
                )
        return selection


def bits_of(positions: set[int], records: int) -> bytes:
    """Returns a bit for each record, which is set for the chosen positions."""
    bits = bytearray(-(-records // 8))
    for position in positions:
        bits[position // 8] |= 128 >> position % 8
    return bytes(bits)
