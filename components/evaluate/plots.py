"""Plots of the model report, as SVG inside the page."""

import html
import math
from collections.abc import Sequence

_WIDTH, _HEIGHT, _MARGIN = 340, 200, 48
_BLUE, _GREY = "#3366cc", "#bbb"


def interval(value: float, low: float, high: float, chance: float | None) -> str:
    """Returns a line from 0 to 1 with an interval, its value, and chance as a grey tick."""
    width, height = 160, 14
    tick = ""
    if chance is not None:
        x = chance * width
        tick = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="1" y2="13" stroke="#888"/>'
    return (
        f'<svg width="{width}" height="{height}" role="img">'
        f'<line x1="0" x2="{width}" y1="7" y2="7" stroke="#ddd"/>{tick}'
        f'<line x1="{low * width:.1f}" x2="{high * width:.1f}" y1="7" y2="7" stroke="{_BLUE}" '
        f'stroke-width="3"/><circle cx="{value * width:.1f}" cy="7" r="3.5" fill="{_BLUE}"/></svg>'
    )


def reliability(bins: Sequence[tuple[float, float, float]]) -> str:
    """Returns what came true over what was said; each bin is its share, probability, and truth."""
    side = _HEIGHT + 2 * _MARGIN

    def at(x: float, y: float) -> tuple[float, float]:
        return _MARGIN + x * _HEIGHT, _MARGIN + (1 - y) * _HEIGHT

    (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
    dots = []
    for share, said, came in bins:
        x, y = at(said, came)
        radius = 2.0 + 8.0 * math.sqrt(share)
        dots.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_BLUE}" fill-opacity=".7">'
            f"<title>said {said:.3f}, came true {came:.3f}, {share:.2%} of pairs</title></circle>"
        )
    return (
        f'<svg width="{side}" height="{side}" role="img">'
        f'<rect x="{x0}" y="{y1}" width="{_HEIGHT}" height="{_HEIGHT}" fill="none" '
        f'stroke="{_GREY}"/><line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{_GREY}"/>'
        f"{''.join(dots)}"
        f'<text x="{x0}" y="{y0 + 16}">0</text><text x="{x1 - 6}" y="{y0 + 16}">1</text>'
        f'<text x="{side / 2}" y="{y0 + 30}" text-anchor="middle">probability said</text>'
        f'<text x="12" y="{side / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {side / 2})">share that is so</text></svg>'
    )


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Returns a line through points `(step, value)`; what is not finite is left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return ""
    xs, ys = zip(*finite, strict=True)
    low, high, last = min(ys), max(ys), max(xs)
    span, length = (high - low) or 1.0, (last - min(xs)) or 1.0
    line = " ".join(
        f"{_MARGIN + (x - min(xs)) / length * (_WIDTH - 2 * _MARGIN):.1f},"
        f"{_MARGIN / 2 + (high - y) / span * (_HEIGHT - 1.5 * _MARGIN):.1f}"
        for x, y in finite
    )
    bottom = _HEIGHT - _MARGIN
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">'
        f'<polyline points="{line}" fill="none" stroke="{_BLUE}" stroke-width="1.5"/>'
        f'<text x="{_MARGIN - 4}" y="{_MARGIN / 2 + 4}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{_MARGIN - 4}" y="{bottom + 4}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{bottom + 18}" text-anchor="end">step {last:g}</text>'
        f'<text x="{_MARGIN}" y="{bottom + 18}">{html.escape(name)}</text></svg>'
    )
