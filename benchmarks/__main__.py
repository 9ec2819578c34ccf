"""`python -m benchmarks`: every bench for every system, side by side, several times over.

Each repetition goes round all systems, so that a machine that grows slower does so for all of them.
Each system has a HOME that lasts over the whole run, and is used once before anything is measured:
what it makes at its first use is there, as on a user's machine.
Figures are medians and ranges of one run. Figures of different runs must not be compared.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import benches, elements, inside, report
from benchmarks.peers import Peer, chosen
from benchmarks.points import Point, Setting
from benchmarks.sizes import FULL, QUICK
from benchmarks.targets import targets

Bench = Callable[[Setting], Iterator[Point]]
BENCHES: dict[str, Bench] = {
    "startup": benches.startup,
    "startup_torch": benches.startup_torch,
    "throughput": benches.throughput,
    "skew": benches.skew,
    "recovery": benches.recovery,
    "scan": benches.scan,
    "rank_loss": benches.rank_loss,
    "overhead": benches.overhead,
    "latency": inside.latency,
    "idle": inside.idle,
    "metadata": inside.metadata,
    "ahead": inside.ahead,
    "ranks": inside.ranks,
    "elements": elements.elements,
}

# The benches that the smoke test leaves out. "startup_torch" differs from "startup" by torch alone,
# whose import takes most of its time; "elements" needs a Slurm, and has a test of its own.
SLOW = ("startup_torch", "elements")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--bench", nargs="+", default=[], choices=BENCHES, metavar="NAME", help=", ".join(BENCHES)
    )
    parser.add_argument("--peer", nargs="+", default=[], metavar="NAME", help="these systems only")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smoke test: small, gpuspool and the standard library",
    )
    parser.add_argument("--runs", type=int, default=0, help="repetitions; default 3, quick 1")
    parser.add_argument(
        "--home", type=Path, help="where the work is done; default a new folder in TMPDIR"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--table", type=Path, help="write the markdown tables to this file")
    parser.add_argument(
        "--doc", type=Path, help="put the tables of the benches measured into this page"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        help="write a plot of the throughput, if it was measured, to this file: SVG",
    )
    return parser.parse_args(argv)


def measure(bench: str, peer: Peer, setting: Setting) -> list[Point]:
    """One repetition. Where a peer cannot do a bench, a point says why; it is never left out."""
    if bench not in peer.benches:
        return []
    why = peer.why_not()
    if why:
        return [setting.point("", "not measured", "", None, why)]
    try:
        return list(BENCHES[bench](setting))
    except (OSError, ValueError, AssertionError, IndexError) as error:
        return [
            setting.point("", "not measured", "", None, f"{type(error).__name__}: {error}"[:200])
        ]


def run_all(options: argparse.Namespace, home: Path) -> list[Point]:
    sizes = QUICK if options.quick else FULL
    peers = chosen(options.peer, options.quick)
    points: list[Point] = []
    for peer in peers:
        if not peer.why_not():
            benches.warm_up(Setting("warm-up", peer, sizes, home))
    wanted = options.bench or [bench for bench in BENCHES if not (options.quick and bench in SLOW)]
    for bench in wanted:
        for repetition in range(options.runs or (1 if options.quick else 3)):
            for peer in peers:
                began = time.monotonic()
                found = measure(bench, peer, Setting(bench, peer, sizes, home))
                points += found
                if found:
                    figures = "; ".join(
                        f"{p.case} {p.metric} {p.value and report.number(p.value)} {p.note}"
                        for p in found
                    )
                    took = time.monotonic() - began
                    print(
                        f"{bench} {repetition + 1} {peer.name} ({took:.1f} s): {figures}",
                        file=sys.stderr,
                        flush=True,
                    )
    return points


def about(peers: list[Peer]) -> dict[str, Any]:
    """The machine, the versions and the peers that the figures belong to."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "argv": sys.argv[1:],
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "peers": {
            p.name: {"version": p.version(), "keeps": p.keeps, "why_not": p.why_not()}
            for p in peers
        },
    }


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    # An exception, unlike a signal's death, lets every `with` block kill what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    told = about(chosen(options.peer, options.quick))
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=options.home) as home:
        points = run_all(options, Path(home).resolve())
    told["load_average_after"] = os.getloadavg()
    figures = report.gather(points)
    found = list(targets(figures))
    text = report.table(figures)
    print(text + "".join(f"{target.line()}\n" for target in found), end="")
    for path, content in ((options.json, report.as_json(figures, told)), (options.table, text)):
        if path is not None:
            path.write_text(content)
    if options.doc is not None:
        runs = options.runs or (1 if options.quick else 3)
        machine = f"{told['cores']} cores, Python {told['python']}, {told['system']}"
        load = os.getloadavg()[0]
        caption = f"{told['at'][:10]}; medians (and ranges) of {runs}; {machine}; load {load:.1f}."
        options.doc.write_text(report.splice(options.doc.read_text(), figures, caption))
    if options.plot is not None and (drawn := report.plot(figures)):
        options.plot.write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
