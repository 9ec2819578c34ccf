"""What an orchestrator does about attempts that it finds open when it starts.

Those that live on this host are adopted: they go on, and no twin is started in their place. Where
they run another job than this epoch's (`--keep-done`), everybody of the earlier epochs is told to
finish what is in hand and to end, on whatever host: all the rest is for the new code. Called once,
by the loop, before its first look.
"""

from __future__ import annotations

from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.spool.code import conflicts, read_code
from gpuspool.spool.publish import publish
from gpuspool.spool.records import Job
from gpuspool.spool.states import Life
from gpuspool.spool.view import View


def adopt(view: View, workers: Workers, job: Job, epoch: int, telling: Telling) -> None:
    """Take over the open attempts that others started, and tell of each. Raises OSError."""
    lives = {attempt: workers.life(attempt) for attempt in workers.others.open()}
    living = [attempt for attempt, life in lives.items() if life is not Life.DEAD]
    how = "goes on"
    # The drain is published before anybody is signalled: workers of other hosts hear of it in no
    # other way. It bears the number of the epoch before, which every earlier attempt obeys and
    # none of this epoch does.
    if _runs_other_code(view, living, job):
        publish(view.layout.drain(epoch - 1), b"")
        workers.tell_to_stop()
        how = "stops for the new code once its tasks in hand are done"
    for attempt in living:
        if lives[attempt] is Life.ALIVE:
            text = f"{attempt} outlived an earlier orchestrator and {how}"
            telling.tell("adopted", text, attempt=attempt)
        else:
            lease_s = workers.others.lease_s(attempt)
            _tell_of_waiting(telling, attempt, lease_s)


def _tell_of_waiting(telling: Telling, attempt: str, lease_s: float) -> None:
    text = (
        f"{attempt} ran elsewhere; it counts as alive until its heartbeat has stood still "
        f"for {lease_s:.0f} s"
    )
    telling.tell("waiting", text, attempt=attempt)


def _runs_other_code(view: View, attempts: list[str], job: Job) -> bool:
    new = read_code(view.layout, job.code)
    for attempt in attempts:
        intent = view.intents.get(attempt)
        if intent is None:
            continue
        if intent.job.sha256 != job.sha256:
            return True
        beat = view.heartbeat(attempt)
        old = read_code(view.layout, beat.code if beat is not None else intent.job.code)
        if new is not None and old is not None and conflicts(old, new):
            return True
    return False
