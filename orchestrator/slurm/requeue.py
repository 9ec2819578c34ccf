"""Having Slurm start a job again, so that a run goes on for longer than a job may last.

The order of events, where a start with `--requeue N` reaches its time limit or gets SIGUSR2:

1. The run is drained, and all that the parent has to write is written.
2. `scontrol requeue Incomplete KEY`: Slurm makes the job pending again, and ends its processes.
3. The parent waits to be ended. If it exited first, Slurm might see the job's end before the
   requeue, and the exit code would be the job's.

**Why "Incomplete".** A plain `scontrol requeue` also starts a job again that was cancelled, even
while it is being ended. Whoever cancels a job in the moment in which it asks for this would see it
come back. With that word Slurm leaves cancelled and finished jobs as they are. For the same reason
nothing of this is ever done after SIGTERM or SIGINT: a job that answers these by starting itself
again cannot be stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from gpuspool.orchestrator.slurm.allocation import job_id_in, scheduler_in
from gpuspool.orchestrator.slurm.commands import ask
from gpuspool.orchestrator.slurm.own_job import OwnJob, ask_of_own_job
from gpuspool.orchestrator.text.words import count_of

# How long the parent waits to be ended. A controller that is busy takes some seconds.
WAIT_S = 300.0

# A controller that is just being started again may refuse the first request. There are at least
# MARGIN_S of `limits` for all tries.
TRIES = 3
PAUSE_S = 5.0


def requeue(
    at_most: int,
    so_far: str,
    say: Callable[[str], object],
    environment: Mapping[str, str] = os.environ,
    wait_s: float = WAIT_S,
) -> None:
    """Have Slurm start this job again, unless it was started again `at_most` times already.

    Does not return where that works: Slurm ends this process. Where it does not work, `say` is told
    why, and the caller ends as it would without this. To be called once all of the run is written.
    so_far: how the start ended, in a line: nobody else may get to say that.
    """
    job_id = job_id_in(environment)
    scheduler = scheduler_in(environment)
    if job_id is None or scheduler is None:
        say("warning: --requeue has no effect, since this is no job of Slurm's")
        return
    job, restarts = scheduler.job, scheduler.restart
    if restarts >= at_most:
        times = count_of(restarts, "time")
        say(f"Slurm job {job} was started again {times}; --requeue {at_most} allows no more")
        return
    say(f"{so_far} Slurm is asked to start job {job} again, {restarts + 1} of {at_most}")
    trouble = _ask_until_done(job_id)
    if trouble:
        say(f"warning: Slurm job {job} was not requeued: {trouble}")
        return
    time.sleep(wait_s)
    say(f"warning: Slurm was asked to start job {job} again, and has not ended this start of it")


def _ask_until_done(job_id: str) -> str:
    """Ask Slurm for the restart, several times if need be; returns what was wrong, "" if nothing.

    A second request does no harm where the first was carried out: the job is pending then.
    """
    trouble = ""
    for n_tried in range(TRIES):
        if n_tried:
            time.sleep(PAUSE_S)
        own = ask_of_own_job(job_id)
        if isinstance(own, OwnJob):
            trouble = ask(["scontrol", "requeue", "Incomplete", own.key]).trouble
            if not trouble:
                return ""
        else:
            trouble = own
    return trouble
