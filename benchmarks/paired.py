"""Two versions of gpuspool side by side: `python -m benchmarks.paired OTHER_PYTHON`.

OTHER_PYTHON is the interpreter of an environment in which the other version is installed in the
same way as this one. Each bench is run for both in turn, A B B A, so a machine that grows slower
does so for both; printed are the ratios of this version to the other, pair by pair.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.__main__ import BENCHES
from benchmarks.peers import PEERS, Peer
from benchmarks.points import Point, Setting
from benchmarks.sizes import FULL, Sizes

# What tells how fast a run is. Memory and counts of tasks are shown by the benches themselves.
METRICS = (
    "whole command",
    "CPU of all",
    "makespan / lower bound",
    "second run",
    "done twice",
    "lost",
)
DEFAULT_BENCHES = ("startup", "throughput", "skew", "recovery")

Key = tuple[str, str, str, str]


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paired")
    parser.add_argument("other", help="the Python of the other version's environment")
    parser.add_argument("--bench", nargs="+", default=DEFAULT_BENCHES, choices=BENCHES)
    parser.add_argument("--runs", type=int, default=5, help="pairs of each bench; default 5")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="of the throughput bench")
    return parser.parse_args(argv)


def measure(bench: str, peer: Peer, sizes: Sizes, home: Path) -> dict[Key, float]:
    """The figures of one repetition, by bench, case, metric and unit."""
    found: dict[Key, float] = {}
    for point in BENCHES[bench](Setting(bench, peer, sizes, home)):
        _take(point, peer, found)
    return found


def _take(point: Point, peer: Peer, found: dict[Key, float]) -> None:
    if point.peer != peer.name or point.metric not in METRICS:
        return
    if point.value is None:
        raise SystemExit(f"{peer.name}, {point.bench} {point.case}: {point.note}")
    found[point.bench, point.case, point.metric, point.unit] = point.value


def compare(options: argparse.Namespace, home: Path) -> dict[Key, list[tuple[float, float]]]:
    """(this version, the other) of each figure, pair by pair."""
    sizes = dataclasses.replace(FULL, throughput=(options.tasks,))
    this = PEERS[0]
    other = dataclasses.replace(this, name="the other", interpreter=options.other)
    pairs: dict[Key, list[tuple[float, float]]] = defaultdict(list)
    for bench in options.bench:
        for repetition in range(options.runs):
            order = [this, other] if repetition % 2 == 0 else [other, this]
            figures = {peer.name: measure(bench, peer, sizes, home) for peer in order}
            for key, value in figures[this.name].items():
                pairs[key].append((value, figures[other.name][key]))
                print(*key, f"{value:.4g} against {figures[other.name][key]:.4g}", file=sys.stderr)
    return pairs


def line(key: Key, pairs: list[tuple[float, float]]) -> str:
    """One row: both medians, and the ratio pair by pair."""
    bench, case, metric, unit = key
    this = statistics.median(a for a, _ in pairs)
    other = statistics.median(b for _, b in pairs)
    text = f"| {bench}, {case} | {metric} | {this:.4g} {unit} | {other:.4g} {unit} |"
    ratios = [a / b for a, b in pairs if b]
    if not ratios:
        return f"{text} – |"
    middle = statistics.median(ratios)
    return f"{text} {middle:.3f} ({min(ratios):.3f}–{max(ratios):.3f}) |"


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as home:
        pairs = compare(options, Path(home).resolve())
    print("| bench | figure | this | the other | this / the other |\n|---|---|---|---|---|")
    for key, values in pairs.items():
        print(line(key, values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
