"""What is recorded: a run that dies half way, and how it ends after all.

`python two_epochs.py HOW HALF JOB PROGRAM…` is started in a folder that holds tasks.jsonl. It
starts PROGRAM with `run`; at HALF finished tasks it kills the parent and two of the four workers.
HOW is

- "adopted": `resume` is started at once, finds two workers alive, and closes the other two.
- "alone": the two workers close the dead and finish all tasks; then `resume` finds nothing to do.
- "whole": nobody is killed.

This program only reads, so that everything that is recorded is gpuspool's. Its exit code is that of
the last command.
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
# Both lie in folders that do not exist yet.
SPOOL = "runs/new/S"
OUT = "results/new/OUT"
RUN = ["--tasks", "tasks.jsonl", "--ranks", str(RANKS), "--spool", SPOOL, "--out", OUT, "-q"]
RUN += ["--arg", "executions=executions"]
PATIENCE_S = 200.0
POLL_S = 0.005


def journals() -> list[Path]:
    return sorted(Path(SPOOL, "journal").glob("rank-*.jsonl"))


def count_finished() -> int:
    """How many lines of finished tasks there are. The first line of a journal does not count."""
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
