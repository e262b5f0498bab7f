"""Resolves a folder pattern with spans and versions, by the rules of TFX's ExampleGen."""

import posixpath
import re
from typing import NamedTuple

from tfx.components.example_gen import utils
from tfx.proto import example_gen_pb2, range_config_pb2

from sigline.pipeline.environment import SPAN


class Input(NamedTuple):
    """A folder of pairs, its span and its version; both are 0 without spans."""

    base: str
    span: int = 0
    version: int = 0


def resolve(pattern: str, span: int | None) -> Input:
    """Returns the folder of a pattern's newest span, in its newest version.

    Args:
        pattern: Folder with `{SPAN}`, and perhaps `{VERSION}`, in its last parts; or a folder
            without either, which is returned unchanged.
        span: The span to use instead of the newest.

    Raises:
        ValueError: If there is no such folder, or it is empty.
    """
    if SPAN not in pattern:
        return Input(pattern)
    # TFX takes the fixed part of the path and the pattern below it separately.
    parts = pattern.rstrip("/").split("/")
    first = next(number for number, part in enumerate(parts) if "{" in part)
    root, inner = "/".join(parts[:first]), "/".join(parts[first:])
    chosen = None
    if span is not None:
        chosen = range_config_pb2.RangeConfig(
            static_range=range_config_pb2.StaticRange(start_span_number=span, end_span_number=span)
        )
    # With `/*`, since TFX looks for files: a span is a folder that holds at least one.
    split = example_gen_pb2.Input.Split(name="pairs", pattern=f"{inner}/*")
    try:
        _, newest_span, version = utils.calculate_splits_fingerprint_span_and_version(
            root, [split], chosen
        )
    except ValueError as error:
        description = "a span" if span is None else f"span {span}"
        raise ValueError(
            f"input_base must lead to {description} with files in it. Received: "
            f"input_base={pattern}: {error}"
        ) from None
    # TFX has replaced the placeholders in the split's pattern by those of the newest span.
    return Input(
        posixpath.join(root, re.sub(r"/\*$", "", split.pattern)), newest_span or 0, version or 0
    )
