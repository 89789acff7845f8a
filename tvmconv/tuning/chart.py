"""Charts as SVG text: candidates over an axis, and horizontal bars.

Colours and fonts are classes of the page's style sheet, so that a chart follows its theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Point", "bars", "course", "number", "ticks"]

_WIDTH, _HEIGHT = 560, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 46, 18, 62
_ROW = 24


@dataclass(frozen=True)
class Point:
    """One candidate: its index for the page's script, its place, and what it is.

    ``y`` is None for a failed candidate, which is drawn below the axis. ``kind`` is ``"plain"``,
    ``"best"`` (on the line of the best) or ``"default"``.
    """

    index: int
    x: float
    y: float | None
    kind: str = "plain"


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: its name, its length, the text behind it, and a class for its colour."""

    name: str
    value: float
    text: str
    kind: str = "plain"


def ticks(most: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to at most ``most``."""
    if not most > 0 or not math.isfinite(most):
        return [0.0]
    rough = most / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [step * i for i in range(int(most / step * (1 + 1e-9)) + 1)]


def number(value: float) -> str:
    """A number with at least three digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 12)}f}"


def course(
    name: str,
    points: Sequence[Point],
    line: Sequence[tuple[float, float]],
    x_title: str,
    limit: float | None,
    end: float,
) -> str:
    """Rates against trials or time: a point for each candidate, a line for the best so far.

    Parameters
    ----------
    name
        What the chart shows, for readers who do not see it.
    points
        The candidates; ``y`` in GFLOP/s.
    line
        Where the best so far rose, from left to right.
    x_title
        Below the axis.
    limit
        GFLOP/s that the processor allows; None: unknown.
    end
        The right end of the axis.
    """
    rates = [point.y for point in points if point.y is not None]
    top = 1.04 * max([*rates, limit or 0.0, 1e-9])
    end = max(end, 1e-9)
    base = _HEIGHT - _BOTTOM
    right = _WIDTH - _RIGHT

    def at_x(value: float) -> float:
        return _LEFT + (right - _LEFT) * value / end

    def at_y(value: float) -> float:
        return base - (base - _TOP) * value / top

    parts = [
        f'<svg class="course" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="application" tabindex="0" '
        f'aria-label="{escape(name)}. Arrow keys go from candidate to candidate.">'
    ]
    parts += _grid(top, end, at_x, at_y, x_title)
    if limit:
        parts += _limit(limit, at_y)
    if any(point.y is None for point in points):
        parts.append(_text(_LEFT - 6, base + 34, "failed", "tick end"))
    steps = _steps(line, end, at_x, at_y)
    order = {"plain": 0, "best": 1, "default": 2}
    drawn = sorted(points, key=lambda point: order[point.kind])
    parts += [_mark(p, at_x(p.x), base + 30 if p.y is None else at_y(p.y)) for p in drawn]
    parts.append(f'<path class="best-line" d="{steps}"/>')
    parts.append('<circle class="ring" r="7" cx="-20" cy="-20"/></svg>')
    return "".join(parts)


def _mark(point: Point, x: float, y: float) -> str:
    place = f'data-i="{point.index}" data-x="{x:.1f}" data-y="{y:.1f}"'
    if point.y is None:
        cross = f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"
        return f'<path class="mark failed" {place} d="{cross}"/>'
    if point.kind == "default":
        diamond = f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"
        return f'<path class="mark default" {place} d="{diamond}"/>'
    radius = 4 if point.kind == "best" else 2.6
    return f'<circle class="mark {point.kind}" {place} cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def _grid(
    top: float,
    end: float,
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
    x_title: str,
) -> list[str]:
    base, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in ticks(top):
        y = at_y(value)
        kind = "axis" if value == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", "tick end"))
    for value in ticks(end, 6):
        x = at_x(value)
        parts.append(f'<path class="axis" d="M{x:.1f} {base}v4"/>')
        parts.append(_text(x, base + 18, f"{value:g}", "tick middle"))
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 8, x_title, "title middle"))
    parts.append(_text(4, 12, "GFLOP/s", "title"))
    return parts


def _limit(limit: float, at_y: Callable[[float], float]) -> list[str]:
    """The dashed line of the limit, and shares of it on the right."""
    right = _WIDTH - _RIGHT
    y = at_y(limit)
    parts = [f'<path class="limit" d="M{_LEFT} {y:.1f}H{right}"/>']
    parts += [
        _text(right + 6, at_y(limit * share) + 4, f"{share:.0%}", "tick")
        for share in (0.25, 0.5, 0.75, 1.0)
    ]
    parts.append(_text(_WIDTH - 2, 12, "share of the limit", "title end"))
    return parts


def _steps(
    line: Sequence[tuple[float, float]],
    end: float,
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
) -> str:
    if not line:
        return ""
    (x, y), *others = line
    steps = f"M{at_x(x):.1f} {at_y(y):.1f}"
    for later, rate in others:
        steps += f"H{at_x(later):.1f}V{at_y(rate):.1f}"
    return f"{steps}H{at_x(end):.1f}"


def bars(name: str, rows: Sequence[Bar], most: float | None = None) -> str:
    """Horizontal bars from zero, each with its name on the left and a text behind it."""
    longest = most or max((row.value for row in rows), default=0.0) or 1.0
    width, left, room = 380, 112, 170
    height = _ROW * len(rows) + 6
    parts = [
        f'<svg class="bars" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">'
    ]
    for place, row in enumerate(rows):
        y = _ROW * place + 4
        length = max(0.0, min(1.0, row.value / longest)) * room
        parts.append(_text(left - 8, y + 13, row.name, "label end"))
        parts.append(
            f'<rect class="bar {row.kind}" x="{left}" y="{y}" width="{max(length, 1):.1f}" '
            f'height="{_ROW - 7}" rx="2"/>'
        )
        parts.append(_text(left + length + 6, y + 13, row.text, "label"))
    return "".join([*parts, "</svg>"])


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
