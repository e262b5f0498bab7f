"""Writes `randaugment.json`: digests of pictures that RandAugment's operations change.

    python tests/golden/make_randaugment.py

They are of the NumPy implementation in `tests/references`, by operation, magnitude and size. Bytes
are the same on all processors, unlike those of a training run.
"""

import hashlib
import json
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "references"))

MAGNITUDES = (0, 10, 15, 20)
SIZES = ((8, 8), (6, 9), (32, 32), (224, 224))
_SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def _variants(name):
    """Returns the ways to apply an operation, by the names that they have in the file."""
    if name in _SIGNED:
        return {f"{name}+": {}, f"{name}-": {"negative": True}}
    if name == "Solarize":
        return {f"{name} wrapped": {}, f"{name} clamped": {"wrapped": False}}
    if name == "Contrast":
        return {f"{name} pixels": {}, f"{name} mean": {"mean": True}}
    return {name: {}}


def main():
    """Writes the digests."""
    import reference_randaugment as reference

    digests = {}
    for name in reference.NAMES:
        for variant, options in _variants(name).items():
            for magnitude in MAGNITUDES:
                for height, width in SIZES:
                    changed = reference.operation(
                        reference.picture(height, width),
                        name,
                        magnitude,
                        center=(height // 3, width // 2),
                        **options,
                    )
                    digest = hashlib.sha256(changed.tobytes()).hexdigest()[:16]
                    place = digests.setdefault(variant, {}).setdefault(f"{height}x{width}", {})
                    place[str(magnitude)] = digest
    lines = [f" {json.dumps(variant)}: {json.dumps(x)}" for variant, x in digests.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    Path(__file__).with_name("randaugment.json").write_text(text)


if __name__ == "__main__":
    main()
