"""The settings of ingest from JSON."""

import dataclasses
import json
from typing import Any

from sigline.components.ingest import images, rules
from sigline.components.ingest.filters import FilterConfig
from sigline.components.ingest.sources import SourceConfig
from sigline.components.ingest.tags import TagConfig
from sigline.schemas import suggestions


def config_from_json(text: str) -> rules.IngestConfig:
    """Reads an `IngestConfig` from the JSON of its fields.

    Raises:
        ValueError: If a field is unknown or a value is of a wrong type or out of range.
    """
    data = json.loads(text)
    sources = data.pop("eval_sources", [])
    if not isinstance(sources, list):
        raise ValueError(f"eval_sources must be a list. Received: eval_sources={sources!r}")
    source = _section(SourceConfig, "source", data.pop("source", {}))
    limits = _section(images.ImageLimits, "limits", data.pop("limits", {}))
    storage = _section(images.ImageStorage, "storage", data.pop("storage", {}))
    duplicates = _section(rules.DuplicateConfig, "duplicates", data.pop("duplicates", {}))
    filters = _section(FilterConfig, "filters", data.pop("filters", {}))
    tags = _section(TagConfig, "tags", data.pop("tags", {}))
    data |= {
        "eval_sources": tuple(sources),
        "source": source,
        "limits": limits,
        "storage": storage,
        "duplicates": duplicates,
        "filters": filters,
        "tags": tags,
    }
    return _section(rules.IngestConfig, "ingest", data)


def _section(cls: type, name: str, data: Any) -> Any:
    """Returns a dataclass from the values of its fields; lists of texts may be one text."""
    if not isinstance(data, dict):
        raise ValueError(f"{name} must be keys and values. Received: {name}={data!r}")
    fields = {item.name: item.type for item in dataclasses.fields(cls)}
    for key, value in data.items():
        if fields.get(key) == tuple[str, ...] and not isinstance(value, tuple):
            data = data | {key: tuple([value] if isinstance(value, str) else value)}
    unknown = sorted(set(data) - set(fields))
    try:
        return cls(**data)
    except TypeError as error:
        problem = f"unknown key {', '.join(map(str, unknown))}" if unknown else str(error)
        meant = suggestions.did_you_mean(str(unknown[0]), fields) if unknown else ""
        raise ValueError(
            f"{name} has a wrong key or value: {problem}. Known keys: {', '.join(fields)}.{meant}"
        ) from error
