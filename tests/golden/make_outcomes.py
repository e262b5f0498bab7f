"""Writes what training and ingest come to, to hold a change against that must not alter it.

    python tests/golden/make_outcomes.py                  # writes outcomes.json
    python tests/golden/make_outcomes.py NAME             # writes those of one recipe anew
    python tests/golden/make_outcomes.py --digests        # prints digests of all bits

Processors round differently, so `outcomes.json` has norms, which a test compares with a tolerance.
Digests are for two checkouts on one machine: each runs the second command, and `diff` compares.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "references"))


def _recipes(folder, names):
    import scene_data
    import tiny_recipes

    records = scene_data.records()
    split_dir, vocabulary = scene_data.write_split(folder, records), scene_data.vocabulary()
    outcomes = {}
    for name in names or tiny_recipes.NAMES:
        short = name.removesuffix(tiny_recipes.PRECOMPUTED)
        settings = tiny_recipes.common(tiny_recipes.recipe(short))
        key = settings, name != short
        if key not in outcomes:
            outcomes[key] = tiny_recipes.train(
                settings,
                Path(tempfile.mkdtemp(dir=folder)),
                split_dir=split_dir,
                vocabulary=vocabulary,
                image=records[0].image,
                precomputed=name != short,
            )
        yield name, outcomes[key]


def _digest(arrays):
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.astype("S256").tobytes() if array.dtype == object else array.tobytes())
    return digest.hexdigest()


def _ingest(folder):
    """Returns the digests of the files that ingest makes of the planted faults."""
    import apache_beam as beam
    import planted_faults

    from sigline.components.ingest import options, transforms
    from sigline.schemas import digests

    planted_faults.write_shards(folder / "faults")
    config = options.config_from_json(json.dumps(planted_faults.CONFIG))
    with beam.Pipeline() as pipeline:
        _ = pipeline | transforms.Ingest(
            str(folder / "faults"), str(folder / "read"), str(folder / "report"), config
        )
    return digests.tree_files(folder / "read")


def main():
    """Writes or prints the outcomes."""
    exact = sys.argv[1:] == ["--digests"]
    names = [] if exact else sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        target = Path(__file__).with_name("outcomes.json")
        outcomes = json.loads(target.read_text()) if names else {}
        for name, outcome in _recipes(folder, names):
            answers = {
                f"{signature} {key}": value
                for signature, outputs in outcome.answers.items()
                for key, value in outputs.items()
            }
            if exact:
                outcomes[name] = [_digest(outcome.parameters), _digest(answers)]
            else:
                embedding = outcome.answers["embed_image"]["embedding"][0]
                outcomes[name] = {
                    "norms": {k: float(np.linalg.norm(x)) for k, x in outcome.parameters.items()},
                    "embedding": [round(float(x), 4) for x in embedding],
                }
        if exact:
            print(json.dumps(outcomes | {"ingest": _ingest(folder)}, indent=1, sort_keys=True))
        else:
            text = json.dumps(outcomes, indent=1, sort_keys=True)
            target.write_text(text + "\n")


if __name__ == "__main__":
    main()
