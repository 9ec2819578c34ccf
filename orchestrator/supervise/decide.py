"""What to do next, as a pure function of what is known. It reads nothing, starts nothing and knows
no clock.

first, whatever else       every attempt that is proved dead is closed, for it changes what is claimable
all tasks have a verdict   wait for the attempts to end themselves, kill who lingers, end "finished"
draining                   wait for the attempts in hand, kill past the grace, end "drained"
no rank's job loads        end "load"
too many tasks failed      drain, end "too many failed"
something is claimable     launch ranks without an open attempt, as many as there is work for; none on a sick device
nothing is, nobody lives   sweep; if that finds nothing either, end "stuck"
every rank has given up    end "gave up"
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpuspool.spool.records import Closing
from gpuspool.spool.states import Life

FAREWELL_S = (
    15.0  # for a worker to notice the end and run its exit handlers, once every task has a verdict
)
BACKOFF_S = (1.0, 30.0)  # before a rank's restart: first, and at most; doubled each time in a row


class OpenAttempt(msgspec.Struct, frozen=True):
    name: str
    rank: int
    life: str
    is_starting: bool


class RankPast(msgspec.Struct, frozen=True):
    """A rank's attempts of this epoch that ended, oldest first, and when the last did, on the
    loop's clock.

    `device`: its token; "" for a CPU rank, which shares its device with all others. `done`: what
    all its attempts of this epoch have finished, the open one too.
    """

    rank: int
    closings: tuple[Closing, ...] = ()
    finished: tuple[int, ...] = ()
    ended_at: float = 0.0
    device: str = ""
    done: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    tasks_left: int
    unclaimed: int
    open: Sequence[OpenAttempt]
    past: Sequence[RankPast]
    is_draining: bool = False
    was_swept: bool = False
    finished_at: float | None = None
    kill_at: float | None = None
    failed: int = 0


class Policy(msgspec.Struct, frozen=True):
    max_restarts: int
    max_failed: int | None = None


class Close(msgspec.Struct, frozen=True):
    attempt: str


class Launch(msgspec.Struct, frozen=True):
    rank: int


class Kill(msgspec.Struct, frozen=True):
    attempt: str


class Sweep(msgspec.Struct, frozen=True):
    pass


class Stop(msgspec.Struct, frozen=True):
    """Drain: too many tasks have failed."""


class End(msgspec.Struct, frozen=True):
    how: str


Action = Close | Launch | Kill | Sweep | Stop | End


def decide(snapshot: Snapshot, policy: Policy, now: float) -> list[Action]:
    """The next actions, to be done in order; an empty list means wait."""
    dead: list[Action] = [
        Close(attempt.name) for attempt in snapshot.open if attempt.life is Life.DEAD
    ]
    if dead:
        return dead
    if snapshot.tasks_left == 0:
        late = snapshot.finished_at is not None and now > snapshot.finished_at + FAREWELL_S
        return _await_end(snapshot, "finished", late)
    if snapshot.is_draining:
        return _await_end(
            snapshot, "drained", snapshot.kill_at is not None and now > snapshot.kill_at
        )
    if policy.max_failed is not None and snapshot.failed >= policy.max_failed:
        return [Stop()]
    if not snapshot.open and _loads_nowhere(snapshot.past):
        return [End("load")]
    if snapshot.unclaimed:
        return _launches(snapshot, policy, now)
    if snapshot.open:
        return []
    return [End("stuck")] if snapshot.was_swept else [Sweep()]


def _await_end(snapshot: Snapshot, how: str, is_late: bool) -> list[Action]:
    here = [attempt for attempt in snapshot.open if attempt.life is Life.ALIVE]
    if not here:
        return [
            End(how)
        ]  # what may live elsewhere ends itself, or is closed by its parent or the next resume
    return [Kill(attempt.name) for attempt in here] if is_late else []


def _loads_nowhere(past: Sequence[RankPast]) -> bool:
    """Every rank that was started failed to load its job at its first attempt, and none got further
    since.
    """
    tried = [rank.closings for rank in past if rank.closings]
    return bool(tried) and all(
        closing.reason == "load" for closings in tried for closing in closings
    )


def _launches(snapshot: Snapshot, policy: Policy, now: float) -> list[Action]:
    busy = {attempt.rank for attempt in snapshot.open}
    sick = sick_devices(snapshot.past, policy)
    free = [rank for rank in snapshot.past if rank.rank not in busy]
    able = [
        rank
        for rank in free
        if rank.device not in sick and failures_in_a_row(rank) <= policy.max_restarts
    ]
    if not able and not snapshot.open:
        return [End("gave up")]
    starting = sum(attempt.is_starting for attempt in snapshot.open)
    ready = [rank for rank in able if now >= rank.ended_at + backoff_s(failures_in_a_row(rank))]
    return [Launch(rank.rank) for rank in ready[: max(0, snapshot.unclaimed - starting)]]


def sick_devices(past: Sequence[RankPast], policy: Policy) -> set[str]:
    """The devices on which more than max_restarts attempts in a row, of whatever ranks, came to
    nothing.

    That a crash made a task suspect excuses the device only as long as no other device gets
    anything done.
    """
    sick = set()
    for device in {rank.device for rank in past if rank.device}:
        here = [rank for rank in past if rank.device == device]
        works_elsewhere = any(rank.done for rank in past if rank.device != device)
        ends = [end for rank in here for end in zip(rank.closings, rank.finished, strict=True)]
        ends = [
            end for end in ends if end[0].state == "failed" or end[1]
        ]  # who found no work says nothing
        ends.sort(key=lambda end: end[0].at)
        if _fruitless(ends, is_excused=not works_elsewhere) > policy.max_restarts:
            sick.add(device)
    return sick


def failures_in_a_row(past: RankPast) -> int:
    """How many of the rank's last attempts finished no task, made no task suspect, and nobody else
    had ended.
    """
    return _fruitless(list(zip(past.closings, past.finished, strict=True)), is_excused=True)


def _fruitless(ends: list[tuple[Closing, int]], is_excused: bool) -> int:
    """How many of the last (closing, finished tasks) failed for nothing; suspects may excuse, a
    task lost always.
    """
    count = 0
    for closing, finished in reversed(ends):
        if (
            finished
            or closing.failures
            or closing.state != "failed"
            or (is_excused and closing.suspects)
        ):
            break
        count += closing.reason != "lost"
    return count


def backoff_s(failures: int) -> float:
    return min(BACKOFF_S[0] * 2.0 ** (failures - 1), BACKOFF_S[1]) if failures else 0.0
