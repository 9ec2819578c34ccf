"""When a start inside a Slurm job drains, and how long it may take, where nobody said so.

Slurm ends a job at its time limit, whatever is in hand then. A start that knows how much time is
left drains shortly before that: nothing is lost, and it may have the job started again. And a job
that is cancelled has KillWait seconds between SIGTERM and SIGKILL, so a drain must not take longer.

Both are defaults: what was said of this start wins, and so does a grace that the run was made with.
Called when a run is started, once it is known that it may.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from gpuspool.orchestrator.slurm.allocation import job_id_in, warning_of_idle_nodes
from gpuspool.orchestrator.slurm.commands import configured_number
from gpuspool.orchestrator.slurm.own_job import OwnJob, ask_of_own_job
from gpuspool.orchestrator.slurm.times import seconds_left
from gpuspool.orchestrator.text.progress import duration
from gpuspool.spool.records import Options

# Between the end of the grace and that of the job a parent sees its workers off, closes attempts
# and asks Slurm to start the job again.
MARGIN_S = 30.0

# Of an element of an array without a time limit squeue tells the time that is left as a year, less
# what has passed. No site allows so long a job, so from here on that is no limit.
UNLIMITED_S = 300 * 86400.0

# However short the time is, at least this part of it is for work.
LEAST_WORK = 0.5

# So much of KillWait is left to a parent after the grace.
KILL_MARGIN_S = 3.0


def with_limits_of_job(
    options: Options, given: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> tuple[Options, list[str]]:
    """The options with the defaults that hold in this Slurm job, and what people should know.

    options: those of the start. given: those that were given to it, without None. Outside of a job
    nothing is changed and nobody asked. Takes at most some 20 s, where Slurm does not answer.
    """
    job_id = job_id_in(environment)
    if job_id is None:
        return options, []
    told: list[str] = []
    idle = warning_of_idle_nodes(environment)
    if idle is not None:
        told.append(f"warning: {idle}")
    own = None if "time_limit_s" in given else ask_of_own_job(job_id)
    # A controller that did not answer this would not answer the next question either.
    does_slurm_answer = not isinstance(own, str)
    if "grace_s" not in given and options.grace_s == Options().grace_s and does_slurm_answer:
        options = msgspec.structs.replace(options, grace_s=_default_grace_s(options.grace_s))
    if own is not None:
        limit_s, text = _time_limit(job_id, own, options.grace_s)
        options = msgspec.structs.replace(options, time_limit_s=limit_s)
        told.append(text)
    return options, told


def _default_grace_s(usual_s: float) -> float:
    """The usual grace, or a shorter one where Slurm kills earlier than that."""
    kill_wait_s = configured_number("KillWait")
    return usual_s if kill_wait_s is None else grace_within(kill_wait_s, usual_s)


def grace_within(kill_wait_s: float, usual_s: float) -> float:
    """How long a drain may take where SIGKILL follows SIGTERM after so many seconds."""
    return max(0.0, min(usual_s, kill_wait_s - KILL_MARGIN_S))


def _time_limit(job_id: str, own: OwnJob | str, grace_s: float) -> tuple[float | None, str]:
    """The default time limit in seconds, None for none, and the line that tells it.

    own: what squeue said of the job, or why it said nothing.
    """
    if isinstance(own, str):
        return None, _no_limit(job_id, own)
    left_s = seconds_left(own.time_left)
    if left_s is None:
        return None, _no_limit(own.key, f"squeue says {own.time_left!r}")
    if left_s >= UNLIMITED_S:
        return None, f"Slurm job {own.key} has no time limit, and neither has this start"
    limit_s = limit_within(left_s, grace_s)
    return limit_s, (
        f"drains in {duration(limit_s)}: Slurm job {own.key} ends {duration(left_s - limit_s)} "
        "later (--time-limit changes that)"
    )


def _no_limit(job: str, why: str) -> str:
    return (
        f"warning: how much time Slurm job {job} has left is not known ({why}), so this start has "
        "no time limit, and at the end of the job tasks in hand are lost and run again; say it "
        "with --time-limit or GPUSPOOL_TIME_LIMIT"
    )


def limit_within(left_s: float, grace_s: float) -> float:
    """How long a start may work that has so much time left and drains for at most `grace_s`."""
    return max(left_s - grace_s - MARGIN_S, left_s * LEAST_WORK)
