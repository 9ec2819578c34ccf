"""Figures of several repetitions made into medians and ranges: JSON, a markdown table for each
bench, and a plot.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.points import Point

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 860, 480, 70, 30, 50, 190
FONT = 'font-family="sans-serif" font-size="12"'
COLOURS = (
    "#d62728",
    "#1f77b4",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#8c564b",
    "#17becf",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
)


@dataclass(frozen=True)
class Figure:
    """All repetitions of one figure. values: those that could be measured."""

    bench: str
    peer: str
    case: str
    metric: str
    unit: str
    values: tuple[float, ...]
    note: str

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    def record(self) -> dict[str, Any]:
        low, high = (min(self.values), max(self.values)) if self.values else (None, None)
        return {
            "bench": self.bench, "peer": self.peer, "case": self.case, "metric": self.metric,
            "unit": self.unit, "median": self.median, "low": low, "high": high,
            "values": list(self.values), "note": self.note,
        }  # fmt: skip

    def cell(self) -> str:
        """Median and range, or why there is none."""
        if not self.values:
            return self.note or "–"
        low, high = number(min(self.values)), number(max(self.values))
        span = f" ({low}–{high})" if low != high else ""
        return (
            f"{number(statistics.median(self.values))}{span}{' ' + self.note if self.note else ''}"
        )


def number(value: float) -> str:
    """Three significant digits, with commas between thousands."""
    if value == 0 or abs(value) >= 1000:
        power = 0 if value == 0 else math.floor(math.log10(abs(value)))
        return f"{round(value, 2 - power):,.0f}"
    digits = min(4, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if value % 1 else f"{value:.0f}"


def gather(points: Iterable[Point]) -> list[Figure]:
    """The repetitions of each figure together, in the order of first appearance."""
    found: dict[tuple[str, str, str, str, str], list[Point]] = {}
    for point in points:
        found.setdefault(
            (point.bench, point.peer, point.case, point.metric, point.unit), []
        ).append(point)
    return [
        Figure(
            *key,
            values=tuple(point.value for point in several if point.value is not None),
            note=next((point.note for point in several if point.note), ""),
        )
        for key, several in found.items()
    ]


def table(figures: Sequence[Figure]) -> str:
    """A markdown table for each bench, with a row for each system.

    A bench with several cases has a table for each metric.
    """
    text = ""
    for bench in dict.fromkeys(figure.bench for figure in figures):
        mine = [figure for figure in figures if figure.bench == bench]
        text += f"### {bench}\n\n"
        if len({figure.case for figure in mine if figure.values}) == 1:
            text += _one_table(mine)
            continue
        for metric in dict.fromkeys(figure.metric for figure in mine):
            text += _one_table([figure for figure in mine if figure.metric == metric])
    return text


def splice(page: str, figures: Sequence[Figure], told: str) -> str:
    """A page in which the tables of these benches are replaced by new ones.

    Each stands between `<!-- NAME -->` and `<!-- end of NAME -->`.
    """
    for bench in dict.fromkeys(figure.bench for figure in figures):
        tables = table([figure for figure in figures if figure.bench == bench])
        page = replace_part(page, bench, f"{tables.partition(chr(10) * 2)[2]}{told}\n")
    return page


def replace_part(page: str, name: str, text: str) -> str:
    """A page with this text between `<!-- NAME -->` and `<!-- end of NAME -->`, if it has these."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(start)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        return page
    return f"{before}{start}\n{text}{end}{after}"


def _one_table(figures: Sequence[Figure]) -> str:
    columns = list(dict.fromkeys((figure.case, figure.metric, figure.unit) for figure in figures))
    heads = [", ".join(filter(None, (case, metric, unit))) for case, metric, unit in columns]
    text = f"| system | {' | '.join(heads)} |\n|---|{'---|' * len(columns)}\n"
    for peer in dict.fromkeys(figure.peer for figure in figures):
        cells = {(f.case, f.metric, f.unit): f.cell() for f in figures if f.peer == peer}
        text += f"| {peer} | {' | '.join(cells.get(column, '–') for column in columns)} |\n"
    return text + "\n"


def as_json(figures: Sequence[Figure], about: dict[str, Any]) -> str:
    return (
        json.dumps({**about, "figures": [figure.record() for figure in figures]}, indent=1) + "\n"
    )


def plot(figures: Sequence[Figure]) -> str:
    """Throughput of the whole command against the number of tasks, both logarithmic, as SVG."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for figure in figures:
        if (figure.bench, figure.metric) == (
            "throughput",
            "whole command",
        ) and figure.median is not None:
            lines.setdefault(figure.peer, []).append(
                (float(figure.case.removeprefix("N=")), figure.median)
            )
    points = [point for line in lines.values() for point in line]
    if not points:
        return ""
    x = _axis([p[0] for p in points], LEFT, WIDTH - RIGHT)
    y = _axis([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18">no-op tasks a second, whole command, 2 workers</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}"'
        ' text-anchor="middle">tasks</text>',
        *_grid(x, y),
    ]
    ends = sorted(lines, key=lambda peer: -lines[peer][-1][1])
    label_y = -math.inf
    for peer in ends:
        colour, line = COLOURS[list(lines).index(peer) % len(COLOURS)], lines[peer]
        path = " ".join(f"{x.at(n):.1f},{y.at(rate):.1f}" for n, rate in line)
        width = 3 if peer == "gpuspool" else 1.5
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        )
        parts += [
            f'<circle cx="{x.at(n):.1f}" cy="{y.at(r):.1f}" r="3" fill="{colour}"/>'
            for n, r in line
        ]
        label_y = max(label_y + 15, y.at(line[-1][1]) + 4)
        label = f"{peer}, {number(line[-1][1])}/s at {number(line[-1][0])}"
        parts.append(
            f'<text x="{WIDTH - RIGHT + 8}" y="{label_y:.1f}" fill="{colour}"'
            f' font-size="10">{label}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class Axis:
    """Powers of ten from `low` to `high`, drawn from `start` to `end`."""

    low: int
    high: int
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (self.end - self.start) * (math.log10(value) - self.low) / (
            self.high - self.low
        )


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    low = math.floor(math.log10(min(values)))
    return Axis(low, max(low + 1, math.ceil(math.log10(max(values)))), start, end)


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = []
    for power in range(x.low, x.high + 1):
        at = x.at(10.0**power)
        parts.append(
            f'<line x1="{at:.1f}" y1="{y.start}" x2="{at:.1f}" y2="{y.end}" stroke="#ddd"/>'
        )
        parts.append(
            f'<text x="{at:.1f}" y="{y.start + 18}" text-anchor="middle">{10**power:,}</text>'
        )
    for power in range(y.low, y.high + 1):
        at = y.at(10.0**power)
        parts.append(
            f'<line x1="{x.start}" y1="{at:.1f}" x2="{x.end}" y2="{at:.1f}" stroke="#ddd"/>'
        )
        parts.append(
            f'<text x="{x.start - 6}" y="{at + 4:.1f}" text-anchor="end">{10**power:,}</text>'
        )
    return parts
