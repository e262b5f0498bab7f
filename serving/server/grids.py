"""Which grid of a model with several answers a request that names none, by load."""

from collections.abc import Collection, Mapping

from sigline.schemas import signatures


class GridsByLoad:
    """The signatures that may answer in place of another one, from its default grid downwards."""

    def __init__(self, names: Collection[str], default: object, rows_per_step: int):
        """Takes what a model has.

        Args:
            names: The model's signatures.
            default: The grid of signatures without a number, as the model's metadata have it.
            rows_per_step: How many rows that wait are a step to the next smaller grid.
        """
        self._rows = rows_per_step
        smaller: dict[str, list[int]] = {}
        for name in names:
            base, grid = signatures.split_grid(name)
            if grid is None or base not in signatures.OF_IMAGES or not isinstance(default, int):
                continue
            if grid < default and base in names:
                smaller.setdefault(base, []).append(grid)
        self._steps = {
            base: [base, *(signatures.at_grid(base, x) for x in sorted(grids, reverse=True))]
            for base, grids in smaller.items()
        }

    def choose(self, signature: str, waiting: Mapping[str, int]) -> str:
        """Returns the signature that computes a request.

        Args:
            signature: What the request names. One with a grid stays, and so does one that sees no
                images, and `serving_default`.
            waiting: How many rows wait, by signature.
        """
        steps = self._steps.get(signature)
        if steps is None:
            return signature
        rows = sum(waiting.get(name, 0) for name in steps)
        return steps[min(rows // self._rows, len(steps) - 1)]
