"""What is recorded: a run that dies half way, and how it comes to its end.

`python two_epochs.py HOW HALF JOB PROGRAM…` in a folder that holds tasks.jsonl: PROGRAM is started
with `run`; at HALF finished tasks the parent and two of the four workers are killed. HOW "adopted":
`resume` is started at once, finds two workers alive, and closes the other two. HOW "alone": the two
workers close the dead and finish all the tasks, and then `resume` finds nothing to do. HOW "whole":
nobody is killed.

It only reads, so that all that is recorded is gpuspool's. Its exit code is that of the last
command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RANKS = 4
SPOOL, OUT = "runs/new/S", "results/new/OUT"  # in folders that are yet to be made
RUN = ["--tasks", "tasks.jsonl", "--ranks", str(RANKS), "--spool", SPOOL, "--out", OUT, "-q"]
RUN += ["--arg", "executions=executions"]
PATIENCE_S = 40.0
POLL_S = 0.005


def journals() -> list[Path]:
    return sorted(Path(SPOOL, "journal").glob("rank-*.jsonl"))


def count_finished() -> int:
    """How many lines of finished tasks there are; the first line of a journal is none."""
    return sum(path.read_bytes().count(b"\n") - 1 for path in journals())


def count_closed() -> int:
    return len(list(Path(SPOOL, "manifests").glob("rank-*.orphans.jsonl")))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the run comes to nothing"
        time.sleep(POLL_S)


def main() -> int:
    how, half, job, *program = sys.argv[1:]
    first = subprocess.Popen([*program, "run", job, *RUN])
    if how == "whole":
        return first.wait()
    wait_until(lambda: count_finished() >= int(half))
    first.kill()
    first.wait()
    for path in journals()[RANKS // 2 :]:
        os.kill(json.loads(path.read_bytes().partition(b"\n")[0])["pid"], signal.SIGKILL)
    if how == "alone":
        wait_until(lambda: count_closed() == RANKS)
    return subprocess.run([*program, "resume", SPOOL, "-q"]).returncode


if __name__ == "__main__":
    sys.exit(main())
