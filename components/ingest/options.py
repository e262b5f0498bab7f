"""The settings of ingest from JSON."""

import json

from sigline.components.ingest import rules
from sigline.schemas import strict


def config_from_json(text: str) -> rules.IngestConfig:
    """Reads an `IngestConfig` from the JSON of its fields; a list of texts may be one text.

    Raises:
        ValueError: If a field is unknown or a value is of a wrong type or out of range.
    """
    return strict.build(rules.IngestConfig, json.loads(text), "ingest.", text_as_list=True)
