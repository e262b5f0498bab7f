"""What a model costs: times of calls, measured side by side, and sizes."""

import statistics
import time
from collections.abc import Callable, Mapping

ROUNDS = 31
_WARM_UP = 3


def latencies(
    calls: Mapping[str, Mapping[str, Callable[[], object]]], *, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Returns the median time of calls in milliseconds, by model and name.

    Models take turns within a round, so that what slows the machine down slows all of them.

    Args:
        calls: What to time, by model and name; each model with the same names.
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
        model: {name: statistics.median(values) for name, values in of_model.items()}
        for model, of_model in times.items()
    }
