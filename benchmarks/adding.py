"""`python -m benchmarks.adding`: what a run of many files costs when ten more come.

The command `run --add` on a finished run is compared with the listing of the same files alone, in
CPU seconds of whole processes, one after the other in each round.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

JOB = "def Job(task, ctx): return 1\n"
GLOB = "in/**/*.txt"
SCAN = (
    "from gpuspool.orchestrator.plan.inputs import collect\n"
    "from gpuspool.orchestrator.plan.matching import root_chooser\n"
    f"collect(paths=[{GLOB!r}], choose_root=root_chooser(None, None))\n"
)
FOLDERS = 100


def cpu_s(command: list[str], home: Path) -> float:
    """The CPU seconds of a command and of all that it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=home, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write(home: Path, first: int, count: int) -> None:
    """So many more input files, of a few bytes each."""
    for number in range(first, first + count):
        folder = home / "in" / f"{number % FOLDERS:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number:07d}.txt").write_text("x" * (number % 7 + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "job.py").write_text(JOB)
        write(home, 0, given.files)
        run = [sys.executable, "-m", "gpuspool", "run", "job.py:Job", GLOB, "--spool", "S", "-q"]
        cpu_s(run, home)
        for round_ in range(given.rounds):
            scan_s = cpu_s([sys.executable, "-c", SCAN], home)
            write(home, given.files + 10 * round_, 10)
            add_s = cpu_s([*run, "--add"], home)
            ratios.append(add_s / scan_s)
            print(f"listing {scan_s:.2f} s, run --add {add_s:.2f} s: {ratios[-1]:.2f}")
    today = datetime.date.today().isoformat()
    print(f"{today}: {given.files:,} files and ten more: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
