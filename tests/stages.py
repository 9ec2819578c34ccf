"""Spools made by hand in which a run stands in a certain way, for the tests of what is shown of it.

The workers that count as alive are this process. Their parent is the one that started it: a process
knows of itself whether it is a parent.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
from spooling import admit, begin, dead_process, finish, intend, make_spool, say_ended, take, task

from gpuspool.spool.closing import publish_closing
from gpuspool.spool.codec import encode
from gpuspool.spool.identity import identity_of, myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, attempt_name, rank_name
from gpuspool.spool.publish import replace
from gpuspool.spool.records import Closing, Heartbeat, Identity
from gpuspool.spool.states import AttemptState, Phase, Reason

STAGES = ("running", "trouble", "drained", "killed", "finished")

# Of each rank so many tasks are planned, and so many are done where the run is not finished.
TASKS = 10
DONE = 4

# So many seconds ago the run was started.
SINCE_S = 754.0

# What makes a table wide: the key of an input deep in folders, and in another alphabet.
LONG_KEY = "a/folder/below/" + "another-folder/" * 10 + "配列-{:04}.fasta"


def stage(root: Path, ranks: int, how: str) -> Layout:
    """A spool of so many ranks whose run stands so; with "trouble" rank 1 is lost, and tasks of
    rank 0 have failed.
    """
    keys = [
        [task(rank * TASKS + at, key=LONG_KEY.format(rank * TASKS + at)) for at in range(TASKS)]
        for rank in range(ranks)
    ]
    layout = make_spool(root, *keys)
    dead = dead_process()
    parent = dead if how == "killed" else identity_of(os.getppid()) or myself()
    admit(layout, 0, parent, at=time.time() - SINCE_S)
    for rank in range(ranks):
        is_dead = how == "killed" or (how == "trouble" and rank == 1)
        _play(layout, rank, how, parent, dead if is_dead else myself())
    if how in ("drained", "finished"):
        say_ended(layout, 0, how)
    return layout


def _token(rank: int) -> str:
    """A device token as long as those of NVML, which ends like no other."""
    return f"GPU-718293a4-1b2c-3d4e-5f60-b5c6{(rank + 1) * 2654435761 % 2**32:08x}"


def _play(layout: Layout, rank: int, how: str, parent: Identity, who: Identity) -> None:
    """Play the attempt of a rank so far."""
    attempt = attempt_name(rank, 0)
    intend(layout, attempt, parent=parent, device=_token(rank))
    writer = begin(layout, attempt) if who == myself() else start_journal(layout, attempt, who)
    assert writer is not None
    take(layout, attempt, TASKS, rank_name(rank))
    first = rank * TASKS
    done = TASKS if how == "finished" else DONE
    finish(writer, *range(first, first + done))
    if how == "trouble" and rank == 0:
        finish(writer, first + DONE, first + DONE + 1, state="failed")
    writer.sync()
    if how in ("drained", "finished"):
        is_done = how == "finished"
        closing = Closing(
            attempt=attempt,
            state=AttemptState.COMPLETE if is_done else AttemptState.STOPPED,
            reason=Reason.FINISHED if is_done else Reason.DRAINED,
            by=attempt,
        )
        left = [task(at, key=LONG_KEY.format(at)) for at in range(first + done, first + TASKS)]
        assert publish_closing(layout, closing, left)
        return
    heartbeat = Heartbeat(
        **msgspec.structs.asdict(who),
        attempt=attempt,
        beat=1,
        parent=str(parent.pid),
        device="0",
        state=Phase.RUNNING,
        at=time.time(),
        task=first + DONE + 2,
        task_since=time.time() - 3,
        done=done,
    )
    replace(layout.heartbeat(attempt), encode(heartbeat))
