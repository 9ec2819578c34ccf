#!/usr/bin/env python3
"""`make demo`: fetch the data, classify all contigs, show the spool, compare the labels.

It runs the commands that a person would type, and prints each before it runs. Started again, it
goes on where it was stopped, or shows the finished run once more.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(os.path.relpath(Path(__file__).resolve().parent))
BIN = Path(os.path.relpath(Path(sys.executable).parent))
SPOOL = "spool-Contigs"
TASKS = HERE / "data" / "tasks.jsonl"


def show(command: list[str]) -> int:
    """Run a command as if it had been typed; returns its exit status."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    return subprocess.run(command).returncode


def spool_tells(gpuspool: str) -> None:
    """Print a table of the attempts, and list the spool."""
    summary = json.loads(Path(SPOOL, "summary.json").read_text())
    print(f"\n{'attempt':16}{'state':10}{'tasks':>6}{'seconds':>9}{'busy':>7}  device")
    for row in summary["attempts"]:
        times = f"{row.get('seconds', 0):9.1f}{row.get('busy_s', 0):7.1f}"
        device = row.get("device", "")
        print(f"{row['attempt']:16}{row['state']:10}{row['finished']:>6}{times}  {device}")
    show(["ls", SPOOL, f"{SPOOL}/complete"])
    show(["sh", "-c", f'grep -c \'"state":"complete"\' {SPOOL}/journal/*'])
    show([gpuspool, "verify", SPOOL])


def has_gpu() -> bool:
    """Whether gpuspool would find devices; without any, two CPU ranks show how work is shared."""
    from gpuspool.orchestrator.plan.devices import find_pool

    return bool(find_pool(None, os.environ).tokens)


def main() -> int:
    """Run the whole demonstration; returns 0 if all contigs agree."""
    python, gpuspool = str(BIN / "python"), str(BIN / "gpuspool")
    if show([python, str(HERE / "fetch_data.py")]) or show(
        [python, str(HERE / "make_tasks.py"), str(TASKS)]
    ):
        return 1
    ranks = [] if has_gpu() else ["--ranks", "2"]
    job = str(HERE / "classify.py") + ":Contigs"
    status = show([gpuspool, "run", *ranks, "--tasks", str(TASKS), job])
    if status != 0:
        return status
    spool_tells(gpuspool)
    return show(["sh", "-c", f"{gpuspool} results {SPOOL} | {python} {HERE / 'compare.py'}"])


if __name__ == "__main__":
    sys.exit(main())
