"""Several outputs of one Beam transform, by the tag that comes with each element.

Beam's own tagged outputs would do, but its Dask runner mixes them.
"""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam


class ParDoByTag(beam.PTransform):
    """Applies a DoFn that yields `(tag, value)`, and parts the values by tag."""

    def __init__(self, fn: beam.DoFn, tags: Sequence[str], *side_inputs: Any):
        super().__init__()
        self._fn = fn
        self._tags = tags
        self._side_inputs = side_inputs

    def expand(self, items):
        """Returns a dictionary from each tag to the values with it."""
        tagged = items | "Tag" >> beam.ParDo(self._fn, *self._side_inputs)
        return {
            tag: tagged | tag.capitalize() >> beam.FlatMap(_with_tag, tag) for tag in self._tags
        }


def _with_tag(item: tuple[str, Any], tag: str):
    return [item[1]] if item[0] == tag else []
