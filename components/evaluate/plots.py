"""Plots of the model report, as SVG inside the page, with axes, ticks and titles."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from sigline.components.evaluate.results import Result

_WIDTH, _HEIGHT = 340, 230
# Margins in pixels: left and below for tick labels and titles, and the other two sides.
_LEFT, _BOTTOM, _EDGE = 70, 44, 14
_BLUE, _GREY = "#3366cc", "#bbb"
_TICKS = 5


def interval(value: float, low: float, high: float, chance: float | None) -> str:
    """Returns a line from 0 to 1 with an interval, its value, and chance as a grey tick."""
    width, height, edge = 160, 26, 8
    span = width - 2 * edge

    def at(share: float) -> str:
        return f"{edge + share * span:.1f}"

    tick, remark = "", ""
    if chance is not None:
        tick = f'<line x1="{at(chance)}" x2="{at(chance)}" y1="1" y2="13" stroke="#888"/>'
        remark = f", chance {chance:.1%}"
    axis = "".join(
        f'<line x1="{at(x)}" x2="{at(x)}" y1="5" y2="9" stroke="{_GREY}"/>'
        f'<text x="{at(x)}" y="24" text-anchor="middle" class="tick">{text}</text>'
        for x, text in ((0.0, "0"), (0.5, "50"), (1.0, "100%"))
    )
    return (
        f'<svg width="{width + 12}" height="{height}" role="img">'
        f"<title>{value:.1%}, interval {low:.1%} to {high:.1%}{remark}</title>"
        f'<line x1="{at(0)}" x2="{at(1)}" y1="7" y2="7" stroke="#ddd"/>{axis}{tick}'
        f'<line x1="{at(low)}" x2="{at(high)}" y1="7" y2="7" stroke="{_BLUE}" '
        f'stroke-width="3"/><circle cx="{at(value)}" cy="7" r="3.5" fill="{_BLUE}"/></svg>'
    )


def reliability(bins: Sequence[tuple[float, float, float]]) -> str:
    """Returns the reliability plot; a bin is its share, predicted probability, and true share."""
    side = 200
    frame = _Frame(side, side, (0.0, 1.0), (0.0, 1.0))
    dots = []
    for share, predicted, came in bins:
        x, y = frame.at(predicted, came)
        radius = 2.0 + 8.0 * math.sqrt(share)
        dots.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_BLUE}" fill-opacity=".7">'
            f"<title>said {predicted:.3f}, came true {came:.3f}, {share:.2%} of pairs</title>"
            "</circle>"
        )
    (x0, y0), (x1, y1) = frame.at(0, 0), frame.at(1, 1)
    diagonal = f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{_GREY}"/>'
    quarters = [(x, f"{x:.0%}") for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
    axes = frame.axes(quarters, quarters, "probability said", "share that is so")
    return frame.svg("Calibration", axes + diagonal + "".join(dots))


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Returns a line through points `(step, value)`; what is not finite is left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return ""
    xs, ys = zip(*finite, strict=True)
    columns, rows = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    frame = _Frame(
        _WIDTH - _LEFT - 2 * _EDGE,
        _HEIGHT - _BOTTOM - _EDGE,
        (min(*xs, columns[0]), max(*xs, columns[-1])),
        (min(*ys, rows[0]), max(*ys, rows[-1])),
    )
    line = " ".join("{:.1f},{:.1f}".format(*frame.at(x, y)) for x, y in finite)
    drawn = f'<polyline points="{line}" fill="none" stroke="{_BLUE}" stroke-width="1.5"/>'
    if len(finite) == 1:
        x, y = frame.at(*finite[0])
        drawn = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{_BLUE}"/>'
    axes = frame.axes(
        [(x, f"{x:g}") for x in columns], [(y, f"{y:.4g}") for y in rows], "step", name
    )
    return frame.svg(f"{name}, up to step {max(xs):g}", axes + drawn)


class GridPoint(NamedTuple):
    """What a grid of patches costs and reaches, both with their intervals."""

    grid: int
    latency: Result
    quality: Result


def grids(metric: str, points: Sequence[GridPoint]) -> str:
    """Returns quality against latency, a point with both intervals for each grid of patches.

    Args:
        metric: What the quality is; a share.
        points: In the order of their grids; their latencies are milliseconds.
    """
    bounds = [(_bounds(latency), _bounds(quality)) for _, latency, quality in points]
    columns = ticks(0.0, max(x_high for (_, x_high), _ in bounds))
    rows = ticks(min(y_low for _, (y_low, _) in bounds), max(y_high for _, (_, y_high) in bounds))
    frame = _Frame(
        _WIDTH - _LEFT - 2 * _EDGE,
        _HEIGHT - _BOTTOM - _EDGE,
        (columns[0], columns[-1]),
        (rows[0], rows[-1]),
    )
    drawn = []
    for (grid, latency, quality), (xs, ys) in zip(points, bounds, strict=True):
        x, y = frame.at(latency.value, quality.value)
        (left, low), (right, high) = (frame.at(*corner) for corner in zip(xs, ys, strict=True))
        drawn.append(
            f'<path d="M{x:.1f} {low:.1f}V{high:.1f}M{left:.1f} {y:.1f}H{right:.1f}" '
            f'stroke="{_BLUE}" fill="none"/><circle cx="{x:.1f}" cy="{y:.1f}" r="3" '
            f'fill="{_BLUE}"><title>{grid} x {grid} patches: {quality.value:.1%}, '
            f"{latency.value:.4g} ms</title></circle>"
            f'<text x="{x + 5:.1f}" y="{y - 5:.1f}">{grid}</text>'
        )
    axes = frame.axes(
        [(x, f"{x:g}") for x in columns],
        [(y, f"{y:.4g}") for y in rows],
        "milliseconds for an image",
        metric,
    )
    return frame.svg(f"{metric} by patches along a side", axes + "".join(drawn))


def _bounds(result: Result) -> tuple[float, float]:
    """Returns the interval of a result, which is the value itself where it has none."""
    if result.low is None or result.high is None:
        return result.value, result.value
    return result.low, result.high


def ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """Returns round numbers, about `count` of them, from not above `low` to not below `high`.

    Steps are 1, 2 or 5 times a power of ten, as on paper.
    """
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Multiples of the step instead of a running sum, whose rounding errors would show.
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


class _Frame:
    """The rectangle of a plot, and where its points are."""

    def __init__(self, width: float, height: float, x: tuple[float, float], y: tuple[float, float]):
        self._width, self._height, self._x, self._y = width, height, x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place of a point."""
        (x0, x1), (y0, y1) = self._x, self._y
        return (
            _LEFT + (x - x0) / ((x1 - x0) or 1.0) * self._width,
            _EDGE + (y1 - y) / ((y1 - y0) or 1.0) * self._height,
        )

    def axes(
        self,
        columns: Sequence[tuple[float, str]],
        rows: Sequence[tuple[float, str]],
        below: str,
        beside: str,
    ) -> str:
        """Returns the rectangle, ticks with their numbers, and the titles of both axes."""
        bottom, middle = _EDGE + self._height, _EDGE + self._height / 2
        parts = [
            f'<rect x="{_LEFT}" y="{_EDGE}" width="{self._width}" height="{self._height}" '
            f'fill="none" stroke="{_GREY}"/>'
        ]
        for value, text in columns:
            x, _ = self.at(value, self._y[0])
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" '
                f'stroke="{_GREY}"/><text x="{x:.1f}" y="{bottom + 16}" '
                f'text-anchor="middle">{html.escape(text)}</text>'
            )
        for value, text in rows:
            _, y = self.at(self._x[0], value)
            parts.append(
                f'<line x1="{_LEFT - 4}" x2="{_LEFT}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{_GREY}"/><text x="{_LEFT - 7}" y="{y + 4:.1f}" '
                f'text-anchor="end">{html.escape(text)}</text>'
            )
        parts.append(
            f'<text x="{_LEFT + self._width / 2}" y="{bottom + 34}" '
            f'text-anchor="middle" class="title">{html.escape(below)}</text>'
            f'<text x="12" y="{middle}" text-anchor="middle" class="title" '
            f'transform="rotate(-90 12 {middle})">{html.escape(beside)}</text>'
        )
        return "".join(parts)

    def svg(self, title: str, content: str) -> str:
        """Returns the picture."""
        width, height = self._width + _LEFT + 2 * _EDGE, self._height + _BOTTOM + _EDGE
        return (
            f'<svg width="{width}" height="{height}" role="img">'
            f"<title>{html.escape(title)}</title>{content}</svg>"
        )
