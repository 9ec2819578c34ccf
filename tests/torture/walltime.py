"""Row "walltime": jobs of a minute each see three minutes of work to their end, by themselves.

A real Slurm kills each element of an array after a minute. Each stops before that, asks to be
started again, and goes on where it was; nobody types anything. Slurm counts in minutes, so it
cannot be played faster.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from helpers import Box
from slurm.cluster import POLL_S, Cluster, why_not

from torture.checker import check
from torture.job import payloads
from torture.rows import Row

NAME = "walltime"
JOB = Path(__file__).with_name("job.py")
# For each amount: how many elements, and how many tasks of a second for each of them.
PLAYED = {"small": (1, 45), "full": (2, 180)}
# How often an element may be started again, and after how long the row gives up.
RESTARTS, PATIENCE_S = 30, 1500.0
OVER = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"}


def row(amount: str, home: Path) -> Row:
    """Submit one run, and wait until Slurm has nothing of it any more."""
    reason = why_not()
    if reason:
        return Row(NAME, 0, f"skipped: {reason}", notes=[reason])
    began = time.monotonic()
    elements, each = PLAYED[amount]
    box = Box(home / "home")
    executions = box / "executions"
    executions.mkdir(parents=True)
    found = Row(NAME, 1, "")
    with Cluster(box, nodes=elements) as slurm:
        command = ["submit", f"{JOB}:work", "--tasks", box.tasks(payloads(elements * each, 1000))]
        command += ["--arg", f"executions={executions}", "--spool", "S", "--time", "1"]
        command += ["--elements", str(elements), "--requeue", str(RESTARTS), "--json"]
        (job,) = json.loads(box.run(*command).out)["jobs"]
        until = time.monotonic() + PATIENCE_S
        while (states := slurm.states(job)) and not {*states.values()} <= OVER:
            if time.monotonic() > until:
                found.failures.append(f"after {PATIENCE_S:.0f} s the jobs are {states}")
                break
            time.sleep(POLL_S)
        restarts = [
            int(slurm.show(f"{job}_{number}").get("Restarts", "0")) for number in range(elements)
        ]
    is_well = {*states.values()} == {"COMPLETED"}
    if not is_well:
        found.failures.append(f"the jobs ended as {states}")
    tasks = elements * each
    found.add(check(box / "S", tasks, claimed_ok=is_well, executions=executions))
    found.counts = (
        f"{tasks} tasks of a second, {elements} elements of a minute, "
        f"started again {' and '.join(map(str, restarts))} times"
    )
    found.seconds = time.monotonic() - began
    return found
