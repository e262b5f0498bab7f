"""Configurations as earlier versions stored them.

`sigline.json` lies in folders of weights and checkpoints and in exported models, and is read for as
long as these are. Version 0.1 had no group `run`; then, until there were `objectives`, a group
`loss` of the loss over pairs and a list `distillation` beside it. Until there were lanes, records
were shuffled by one buffer.
"""

from typing import Any

# Fields that version 0.1 counted among those that decide the outcome.
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
_LOSS = {
    "name": "sigmoid",
    "weight": 1.0,
    "softmax_weight": 0.0,
    "temperature_init": 10.0,
    "bias_init": -10.0,
    "chunk_size": None,
    "exchange": "auto",
    "negatives": "all",
    "negatives_per_image": 16,
}
_DISTILLATION = {"target": "classes", "weight": 1.0, "temperature": 1.0}
_OF_PAIRS = ("weight", "chunk_size", "negatives", "negatives_per_image")
_OF_SIMILARITY = ("temperature_init", "bias_init")

# Former keys, and the keys that hold their values now.
RENAMED = {
    "loss.name": "objectives.pairs.loss",
    "loss.exchange": "run.exchange",
    "loss.softmax_weight": "the weight of a further objective of pairs, with loss=softmax,",
    "distillation": "in objectives, with kind=distill,",
    **{f"loss.{name}": f"objectives.pairs.{name}" for name in _OF_PAIRS},
    **{f"loss.{name}": f"similarity.{name}" for name in _OF_SIMILARITY},
}


def upgraded(data: Any) -> Any:
    """Returns the fields of a configuration as they are today; what is of today is left alone."""
    if not isinstance(data, dict):
        return data
    return _with_lanes(_with_objectives(_with_run(data)))


def _with_run(data: dict[str, Any]) -> dict[str, Any]:
    if "run" in data:
        return data
    run = {name: data[name] for name in _RUN if name in data}
    rest = {name: value for name, value in data.items() if name not in run}
    group = rest.get("data")
    if isinstance(group, dict) and _DAMAGED in group:
        run[_DAMAGED] = group[_DAMAGED]
        rest["data"] = {name: value for name, value in group.items() if name != _DAMAGED}
    return rest | {"run": run} if run else rest


def _with_lanes(data: dict[str, Any]) -> dict[str, Any]:
    group = data.get("data")
    if not isinstance(group, dict) or "lanes" in group:
        return data
    return data | {"data": group | {"lanes": None}}


def _with_objectives(data: dict[str, Any]) -> dict[str, Any]:
    if "loss" not in data and "distillation" not in data:
        return data
    loss = _LOSS | data.get("loss", {})
    objectives = []
    if loss["weight"]:
        pairs = {name: loss[name] for name in _OF_PAIRS}
        objectives.append({"kind": "pairs", "loss": loss["name"]} | pairs)
    if loss["softmax_weight"]:
        added = {"loss": "softmax", "weight": loss["softmax_weight"]}
        objectives.append({"kind": "pairs", "chunk_size": loss["chunk_size"]} | added)
    for item in data.get("distillation", ()):
        chunk = {"chunk_size": loss["chunk_size"]} if item.get("target") == "pairs" else {}
        objectives.append({"kind": "distill"} | chunk | item)
    rest = {name: value for name, value in data.items() if name not in ("loss", "distillation")}
    return rest | {
        "objectives": objectives,
        "similarity": {name: loss[name] for name in _OF_SIMILARITY},
        "run": data.get("run", {}) | {"exchange": loss["exchange"]},
    }


def outcome_before(data: Any, outcome: dict[str, Any]) -> dict[str, Any] | None:
    """Returns what digests were of before there were objectives; None of what is of today.

    Args:
        data: A configuration as it was stored.
        outcome: What digests of the same configuration are of today.
    """
    if not isinstance(data, dict) or "loss" not in data:
        return None
    before = {k: v for k, v in outcome.items() if k not in ("objectives", "similarity")}
    loss = {k: v for k, v in data["loss"].items() if v != _LOSS[k]}
    if loss:
        before["loss"] = loss
    if data.get("distillation"):
        before["distillation"] = [
            {k: v for k, v in item.items() if k == "teacher" or v != _DISTILLATION[k]}
            for item in data["distillation"]
        ]
    return before
