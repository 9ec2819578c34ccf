"""How many calls a second a run makes on the files of its spool: by ranks, parents and mode.

    python -m benchmarks.calls                    # all cases; some twenty minutes
    python -m benchmarks.calls --only "8 ranks"

Runs are started for real, with as many parents as the case has, all on this host. *At rest* one
rank is in a task that does not end and all others are idle; *at work* each rank runs tasks of a
second, one after the other. After a while strace is attached to every process for a minute, and the
calls that concern the spool are counted. `--poll 2s` is what a run does on a network file system.

Two figures are told. `all` is every such call; a listing is four of them, an open(2), an fstat(2)
and two getdents64(2). `names` leaves out fstat(2), which asks about a file that was just opened.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.inside import METADATA

GPUSPOOL = [sys.executable, "-P", "-m", "gpuspool"]

JOB = """
import os, time

def rest(task, ctx):
    # Whoever finds nothing to do when it starts does not even start: so nothing is done before all
    # ranks are there.
    open(os.path.join(ctx.args["here"], str(ctx.rank)), "w").close()
    while len(os.listdir(ctx.args["here"])) < int(ctx.args["ranks"]):
        time.sleep(0.1)
    while task.index == 0 and not os.path.exists(ctx.args["gate"]):
        time.sleep(0.5)

def work(task, ctx):
    time.sleep(0 if os.path.exists(ctx.args["gate"]) else 1)
"""
# So many tasks a rank are more than the longest case gets through.
TASKS_A_RANK = 400

# Ranks become idle, look a dozen times, and read the spool twice; after this only what they do for
# as long as they rest is left. The first reading comes the later the more ranks there are.
SETTLE_S = 45.0
SETTLE_MANY_S = 200.0
FEW_RANKS = 8
SPAN_S = 60.0

_CALL = re.compile(r"\d+ +(\w+)\(")


class Case(NamedTuple):
    """A run of so many parents, each with so many ranks. mode: "inotify" or "poll"."""

    parents: int
    ranks: int
    mode: str
    doing: str = "rest"

    @property
    def name(self) -> str:
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        if self.parents == 1:
            return ranks
        return f"{self.parents} parents of {ranks}"


class Rate(NamedTuple):
    """Calls a second. all: as strace sees them. names: without fstat(2)."""

    all: float
    names: float


class Started(NamedTuple):
    """A run that goes on until its gate is opened."""

    home: Path
    processes: list[subprocess.Popen[bytes]]

    def pids(self) -> list[int]:
        """Of the parents and of their children."""
        parents = [process.pid for process in self.processes]
        found = list(parents)
        for parent in parents:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
            found += map(int, children.split())
        return found


@contextmanager
def started(case: Case, home: Path) -> Iterator[Started]:
    """A run in an empty folder; at the end its gate is opened, and it is waited for.

    Raises AssertionError where it does not end well.
    """
    (home / "job.py").write_text(JOB)
    n_tasks = TASKS_A_RANK * case.ranks * case.parents
    (home / "tasks").write_text("".join(f"{task}\n" for task in range(n_tasks)))
    words = ["run", f"job.py:{case.doing}", "--lines", "tasks", "--spool", "S", "-q"]
    words += ["--ranks", str(case.ranks), "--arg", f"gate={home / 'gate'}"]
    here = home / "here"
    here.mkdir()
    words += ["--arg", f"here={here}", "--arg", f"ranks={case.ranks * case.parents}"]
    if case.mode == "poll":
        words += ["--poll", "2s"]
    processes: list[subprocess.Popen[bytes]] = []
    with open(home / "said", "ab") as said:
        for _ in range(case.parents):
            processes.append(
                subprocess.Popen([*GPUSPOOL, *words], cwd=home, stdout=said, stderr=said)
            )
        try:
            yield Started(home, processes)
        finally:
            (home / "gate").touch()
            codes = [process.wait() for process in processes]
    assert not any(codes), (home / "said").read_text()


def calls_of(runs: Sequence[Started], settle_s: float, span_s: float) -> list[Rate]:
    """The calls of all processes of each run on files of the spool, within a span of time that
    begins after another one.
    """
    time.sleep(settle_s)
    tracers = []
    for run in runs:
        pids = [word for pid in run.pids() for word in ("-p", str(pid))]
        words = ["strace", "-f", "-q", "-y", "-o", str(run.home / "trace"), *pids]
        words += ["-e", f"trace=?{',?'.join(METADATA)}"]
        tracers.append(subprocess.Popen(words, stderr=subprocess.DEVNULL))
    time.sleep(span_s)
    for tracer in tracers:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
    return [_count(run.home, span_s) for run in runs]


# A worker names the files of its spool by a descriptor that it holds open, and OUT too. strace
# follows each descriptor by its path in angle brackets, and the folder in which a process works,
# which tells nothing.
def _count(home: Path, span_s: float) -> Rate:
    spool = re.compile(rf'["<]{re.escape(str(home))}/S\b|"/proc/self/fd/')
    n_all = n_stats = 0
    for line in (home / "trace").read_text().splitlines():
        call = _CALL.match(line)
        if call is not None and spool.search(line.replace(f"AT_FDCWD<{home}>", "")):
            n_all += 1
            n_stats += call[1] == "fstat" or "AT_EMPTY_PATH" in line
    return Rate(n_all / span_s, (n_all - n_stats) / span_s)


def measure(case: Case, settle_s: float = SETTLE_S, span_s: float = SPAN_S) -> Rate:
    """Start a run, let it settle, count, and end it."""
    with tempfile.TemporaryDirectory() as home, started(case, Path(home)) as run:
        return calls_of([run], settle_s, span_s)[0]


def cases() -> list[Case]:
    shapes = [(1, 1), (1, 8), (1, 64), (4, 2), (8, 1)]
    return [
        Case(parents, ranks, mode, doing)
        for doing in ("rest", "work")
        for mode in ("poll", "inotify")
        for parents, ranks in shapes
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    only = parser.parse_args().only
    if shutil.which("strace") is None:
        sys.exit("strace is missing; scripts/test_packages.sh installs it")
    print("| ranks | mode | at | calls a second, all | names |\n|---|---|---|---|---|")
    for case in cases():
        if only in f"{case.name} {case.mode} {case.doing}":
            is_few = case.parents * case.ranks <= FEW_RANKS
            rate = measure(case, SETTLE_S if is_few else SETTLE_MANY_S)
            row = f"{case.name} | {case.mode} | {case.doing} | {rate.all:.1f} | {rate.names:.1f}"
            print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
