"""gpuspool: the command that a user would type. The same command again goes on with what is on
disk.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SLEEPING = ("skew", "skew_costs", "recovery", "rank_loss", "idle", "ranks")
JOBS = {
    "overhead": "jobs.py:spinning",
    "startup_torch": "torch_job.py:noop",
    "latency": "jobs.py:leaving",
}
JOBS |= {"ahead": "jobs.py:Ahead", "ahead_not": "jobs.py:NotAhead"}
JOBS |= dict.fromkeys(SLEEPING, "jobs.py:sleeping")


def main():
    bench, _, workers, folder = sys.argv[1:]
    beside = Path(sys.executable).with_name("gpuspool")
    program = str(beside) if beside.exists() else shutil.which("gpuspool")
    job = f"{HERE}/{JOBS.get(bench, 'jobs.py:noop')}"
    inputs = (
        ["--tasks", f"{folder}/costs.jsonl"]
        if bench == "skew_costs"
        else ["--lines", f"{folder}/lines"]
    )
    where = ["--ranks", workers, "--devices", "cpu", "--spool", f"{folder}/spool"]
    print(json.dumps({"argv": [program, "run", job, *inputs, *where, "--json", "--quiet"]}))


main()
