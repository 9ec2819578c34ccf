"""The jobs of job.py, slow while they are recorded, and fast when a state is recovered.

TORTURE_PACE: seconds that each task takes, three times as many on rank 0, so that the others steal
from it.
"""

import os
import time

import job

PACE_S = float(os.environ.get("TORTURE_PACE", "0"))


def dawdle(ctx):
    time.sleep(PACE_S * (3 if ctx.rank == 0 else 1))


def work(task, ctx):
    dawdle(ctx)
    return job.work(task, ctx)


class Batched(job.Batched):
    """Work on four tasks at a time."""

    def __call__(self, tasks, ctx):
        return [work(task, ctx) for task in tasks]
