"""What a model costs: times of calls, measured side by side, and sizes."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

ROUNDS = 31
_WARM_UP = 3
# Standard deviations of the normal distribution to either side that hold 95 % of it.
_NORMAL_95 = 1.96


class Cost(NamedTuple):
    """What something costs, between the bounds of its interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def latencies(
    calls: Mapping[str, Mapping[str, Callable[[], object]]], *, rounds: int = ROUNDS
) -> dict[str, dict[str, Cost]]:
    """Returns the median time of calls in milliseconds, by model and name.

    Models take turns within a round, so that what slows the machine down slows all of them.

    Args:
        calls: What to time, by model and name.
        rounds: How often.
    """
    times: dict[str, dict[str, list[float]]] = {
        model: {name: [] for name in of_model} for model, of_model in calls.items()
    }
    for number in range(-_WARM_UP, rounds):
        for model, of_model in calls.items():
            for name, call in of_model.items():
                start = time.perf_counter()
                call()
                if number >= 0:
                    times[model][name].append(1e3 * (time.perf_counter() - start))
    return {
        model: {name: _median(values) for name, values in of_model.items()}
        for model, of_model in times.items()
    }


def _median(values: Sequence[float]) -> Cost:
    """Returns the median with its 95 % interval by order statistics, which asks for no shape.

    How many values lie below the median is binomial; the bounds are the values at the ranks that
    its normal approximation gives.
    """
    ordered, count = sorted(values), len(values)
    spread = _NORMAL_95 * math.sqrt(count) / 2
    low, high = math.floor(count / 2 - spread), math.ceil(count / 2 + spread)
    return Cost(statistics.median(ordered), ordered[max(low - 1, 0)], ordered[min(high, count - 1)])
