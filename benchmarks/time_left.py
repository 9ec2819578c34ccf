"""`python -m benchmarks.time_left`: how true the time left is that people see, in three cases.

Each case is one real run on a terminal of its own, with inputs whose costs differ a hundredfold:
tasks that all take the same, tasks that take what their costs say, and tasks that take some time
which has nothing to do with their costs. What the terminal shows is read with the moment at which
it showed that, and compared with what was really left.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pty
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

JOB = """
import time

def Sleep(task, ctx):
    time.sleep(task.payload)
"""
# What a task of a cost takes, in units of the mean; drawn with the generator.
CASES: dict[str, Callable[[random.Random, float], float]] = {
    "equal tasks of unequal size": lambda _rng, _cost: 1.0,
    "costs that tell": lambda rng, cost: cost * rng.uniform(0.8, 1.2),
    "costs that lie": lambda rng, _cost: rng.uniform(0.2, 1.8),
}
LEFT = re.compile(rb"(?:(\d+):)?(\d+):(\d\d) left")
# From here on what is left is compared: a tenth of the run, until so many seconds are left. What is
# shown are whole seconds, and of fewer than these half a second is too large a part.
FROM = 0.1
UNTIL_S = 3.0


def watch(command: list[str], home: Path) -> tuple[list[tuple[float, float]], float, float]:
    """Run a command on a terminal: (moment, seconds left that it showed then), begin and end."""
    begun = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.environ.update(COLUMNS="200", TERM="xterm")
        os.execvp(command[0], command)
    shown: list[tuple[float, float]] = []
    text = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        text = (text + data)[-4000:]
        found = LEFT.findall(text)
        if found:
            hours, minutes, seconds = found[-1]
            left_s = 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds)
            shown.append((time.monotonic(), float(left_s)))
    ended = time.monotonic()
    os.waitpid(pid, 0)
    return shown, begun, ended


def measure(case: str, n_tasks: int, mean_s: float, seed: int) -> str:
    """One row of the table: what was shown at some moments, and how wrong it was at most."""
    rng = random.Random(seed)
    costs = [rng.lognormvariate(0, 1) for _ in range(n_tasks)]
    units = [CASES[case](rng, cost) for cost in costs]
    mean = statistics.mean(units)
    seconds = [mean_s * unit / mean for unit in units]
    home = Path(tempfile.mkdtemp(prefix="time-left-"))
    try:
        (home / "job.py").write_text(JOB)
        pairs = zip(seconds, costs, strict=True)
        lines = [json.dumps({"payload": s, "cost": 1e6 * cost}) for s, cost in pairs]
        (home / "tasks.jsonl").write_text("\n".join(lines) + "\n")
        job = ["run", "job.py:Sleep", "--tasks", "tasks.jsonl", "--ranks", "2", "--devices", "cpu"]
        shown, begun, ended = watch([sys.executable, "-P", "-m", "gpuspool", *job], home)
    finally:
        shutil.rmtree(home)
    took_s = ended - begun
    ratios: list[float] = []
    cells: list[str] = []
    moments = [0.1, 0.25, 0.5, 0.75]
    for moment, left_s in shown:
        true_s = ended - moment
        part = (moment - begun) / took_s
        if part < FROM or true_s < UNTIL_S:
            continue
        ratios.append(max(left_s, 0.5) / true_s)
        if moments and part >= moments[0]:
            del moments[0]
            cells.append(f"{left_s:.0f} / {true_s:.1f}")
    worst = max(ratios, key=lambda ratio: max(ratio, 1 / ratio))
    return f"| {case} | {took_s:.1f} | {' | '.join(cells)} | {worst:.2f} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--mean", type=float, default=0.2, help="seconds of a task")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    print(
        "| case | run, s | shown / left at 10 %, s | at 25 % | at 50 % | at 75 % "
        "| worst shown / left |\n|---|---|---|---|---|---|---|"
    )
    for case in CASES:
        print(measure(case, options.tasks, options.mean, options.seed), flush=True)
    load = os.getloadavg()[0]
    print(f"\n{datetime.date.today()}; {os.cpu_count()} cores, load {load:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
