"""Configurations as earlier versions stored them.

`sigline.json` lies in folders of weights and checkpoints and in exported models, and is read for as
long as these are.
"""

from typing import Any

# Version 0.1 had these among what decides the outcome.
_RUN = (
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "keep_every_steps",
    "max_skipped_steps",
    "log_steps",
    "strategy",
    "jit_compile",
)
_DAMAGED = "max_damaged_records"


def upgraded(data: Any) -> Any:
    """Returns the fields of a configuration as they are today; what is of today is left alone."""
    if not isinstance(data, dict) or "run" in data:
        return data
    run = {name: data[name] for name in _RUN if name in data}
    rest = {name: value for name, value in data.items() if name not in run}
    group = rest.get("data")
    if isinstance(group, dict) and _DAMAGED in group:
        run[_DAMAGED] = group[_DAMAGED]
        rest["data"] = {name: value for name, value in group.items() if name != _DAMAGED}
    return rest | {"run": run} if run else rest
