"""Each row of the table at the top of supervise/decide.py: what is done next, from what is known
alone.
"""

from typing import Any

import pytest

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.decide import (
    BACKOFF_FIRST_S,
    BACKOFF_MOST_S,
    FAREWELL_S,
    Action,
    Close,
    End,
    Kill,
    Launch,
    Mend,
    OpenAttempt,
    Policy,
    RankPast,
    SayFinished,
    Snapshot,
    Stop,
    Sweep,
    backoff_s,
    decide,
    failures_in_a_row,
    next_restart_at,
)
from gpuspool.orchestrator.supervise.drain import Drain
from gpuspool.spool.records import Closing
from gpuspool.spool.states import AttemptState, Ending, Life, Reason

NOW = 1000.0


def decided(now: float = NOW, max_restarts: int = 3, **known: Any) -> list[Action]:
    defaults: dict[str, Any] = {
        "tasks_left": 10,
        "unclaimed": 10,
        "open": [],
        "past": [idle(0), idle(1)],
    }
    return decide(Snapshot(**{**defaults, **known}), Policy(max_restarts), now)


def attempt(rank: int, life: Life = Life.ALIVE, is_starting: bool = False) -> OpenAttempt:
    return OpenAttempt(f"rank-{rank:04d}.a00", rank, life, is_starting)


def launch(rank: int) -> Launch:
    return Launch(Slot(rank))


def closing(
    reason: Reason, state: AttemptState = AttemptState.FAILED, suspects: int = 0
) -> Closing:
    return Closing(
        attempt="rank-0000.a00", state=state, reason=reason, by="parent", suspects=suspects
    )


def idle(rank: int) -> RankPast:
    return RankPast(Slot(rank))


def past(
    *reasons: str, rank: int = 0, finished: int = 0, ended_at: float = 0.0, **fields: Any
) -> RankPast:
    closings = tuple(closing(Reason(reason), **fields) for reason in reasons)
    return RankPast(Slot(rank), closings, (finished,) * len(closings), ended_at)


@pytest.mark.parametrize(
    "known", [{}, {"tasks_left": 0}, {"drain": Drain("asked", 0.0)}, {"unclaimed": 0}]
)
def test_the_dead_are_closed_before_anything_else(known: dict[str, Any]) -> None:
    lives = [attempt(0, Life.DEAD), attempt(1), attempt(2, Life.DEAD), attempt(3, Life.ELSEWHERE)]
    assert decided(open=lives, **known) == [Close(("rank-0000.a00", "rank-0002.a00"))]


def test_four_hundred_dead_are_closed_by_one_action() -> None:
    lives = [attempt(rank, Life.DEAD) for rank in range(400)]
    (action,) = decided(open=lives)
    assert action == Close(tuple(life.name for life in lives))


@pytest.mark.parametrize(
    "known", [{}, {"tasks_left": 0}, {"drain": Drain("asked", 0.0)}, {"unclaimed": 0}]
)
def test_claims_are_mended_once_nothing_dead_is_open(known: dict[str, Any]) -> None:
    dead, alive = attempt(0, Life.DEAD), attempt(1)
    assert decided(open=[dead, alive], is_mending_due=True, **known) == [Close((dead.name,))]
    assert decided(open=[alive], is_mending_due=True, **known) == [Mend()]


def test_attempts_that_wait_are_told_once_that_all_is_done() -> None:
    assert decided(tasks_left=0, open=[attempt(0)]) == [SayFinished()]
    assert decided(tasks_left=0, open=[attempt(0)], finished_at=NOW) == []
    elsewhere = [attempt(0, Life.ELSEWHERE)]
    assert decided(tasks_left=0, open=elsewhere) == [SayFinished(), End(Ending.FINISHED)]
    assert decided(tasks_left=0) == [End(Ending.FINISHED)]


def test_all_done_waits_for_attempts_to_end_themselves() -> None:
    assert decided(tasks_left=0, unclaimed=0, finished_at=NOW) == [End(Ending.FINISHED)]
    assert decided(tasks_left=0, open=[attempt(0)], finished_at=NOW - FAREWELL_S / 2) == []
    late = {"tasks_left": 0, "finished_at": NOW - FAREWELL_S - 1}
    assert decided(open=[attempt(0), attempt(1)], **late) == [
        Kill("rank-0000.a00"),
        Kill("rank-0001.a00"),
    ]


def test_all_done_ends_finished_even_while_draining_or_with_every_rank_given_up() -> None:
    assert decided(tasks_left=0, drain=Drain("asked", NOW)) == [End(Ending.FINISHED)]
    assert decided(tasks_left=0, past=[past(*["device"] * 9)]) == [End(Ending.FINISHED)]


def test_a_drain_waits_for_the_tasks_in_hand_and_starts_nothing() -> None:
    assert decided(drain=Drain("asked", NOW + 5), open=[attempt(0)]) == []
    assert decided(drain=Drain("asked", NOW + 5)) == [End(Ending.DRAINED)]


def test_a_drain_kills_past_the_grace() -> None:
    lives = [attempt(0), attempt(1)]
    assert decided(drain=Drain("asked", NOW - 1), open=lives) == [
        Kill("rank-0000.a00"),
        Kill("rank-0001.a00"),
    ]


def test_a_drain_does_not_wait_for_what_may_live_on_another_host() -> None:
    assert decided(drain=Drain("asked", NOW + 5), open=[attempt(0, Life.ELSEWHERE)]) == [
        End(Ending.DRAINED)
    ]


@pytest.mark.parametrize(
    "known", [{"tasks_left": 0, "finished_at": NOW - 99}, {"drain": Drain("asked", NOW - 1)}]
)
def test_an_end_waits_only_for_what_is_proved_alive_here(known: dict[str, Any]) -> None:
    """What may live elsewhere ends itself, or is closed by its own parent or the next resume."""
    assert decided(open=[attempt(0), attempt(1, Life.ELSEWHERE)], **known) == [
        Kill("rank-0000.a00")
    ]
    assert isinstance(decided(open=[attempt(1, Life.ELSEWHERE)], **known)[0], End)


def test_a_drain_ends_as_it_says() -> None:
    many = Drain("3 tasks failed, --max-failed 3", NOW, Ending.TOO_MANY_FAILED)
    assert decided(drain=many) == [End(Ending.TOO_MANY_FAILED)]
    assert decided(drain=Drain("", NOW, Ending.INTERRUPTED)) == [End(Ending.INTERRUPTED)]


def test_too_many_failed_tasks_begin_a_drain() -> None:
    known = {"tasks_left": 5, "unclaimed": 5, "open": [], "past": [idle(0)]}
    policy = Policy(max_restarts=3, max_failed=2)
    assert decide(Snapshot(**known, failed=2), policy, NOW) == [Stop()]
    assert decide(Snapshot(**known, failed=1), policy, NOW) == [launch(0)]
    draining = Snapshot(**known, failed=2, drain=Drain("asked", NOW + 5))
    assert decide(draining, policy, NOW) == [End(Ending.DRAINED)]


def test_a_job_that_loads_nowhere_ends_the_run() -> None:
    assert decided(past=[past("load"), past("load", rank=1)]) == [End(Ending.LOAD)]
    assert decided(past=[past("load"), idle(1)]) == [End(Ending.LOAD)]


def test_a_job_that_loads_somewhere_does_not_end_the_run() -> None:
    assert decided(past=[past("load"), idle(1)], open=[attempt(1)]) != [End(Ending.LOAD)]
    assert decided(
        past=[past("load"), past("finished", rank=1, state=AttemptState.COMPLETE, finished=3)]
    ) == [launch(0), launch(1)]
    assert decided(past=[past("load", "crash")]) == [launch(0)]


def test_ranks_without_an_open_attempt_are_launched() -> None:
    assert decided() == [launch(0), launch(1)]
    assert decided(open=[attempt(0)]) == [launch(1)]
    assert decided(open=[attempt(0), attempt(1)]) == []


def test_an_attempt_of_a_rank_that_this_epoch_does_not_have_is_no_hindrance() -> None:
    assert decided(open=[attempt(7)], past=[idle(0)]) == [launch(0)]


def test_no_more_are_launched_than_there_is_work_for() -> None:
    assert decided(unclaimed=1) == [launch(0)]
    assert decided(unclaimed=1, open=[attempt(0, is_starting=True)]) == []
    assert decided(unclaimed=2, open=[attempt(0, is_starting=True)]) == [launch(1)]
    assert decided(unclaimed=1, open=[attempt(0)]) == [launch(1)]


def test_nothing_to_claim_waits_while_anybody_lives() -> None:
    assert decided(unclaimed=0, open=[attempt(0)]) == []
    assert decided(unclaimed=0, open=[attempt(0, Life.ELSEWHERE)]) == []


def test_nothing_to_claim_and_nobody_alive_is_swept_once() -> None:
    assert decided(unclaimed=0) == [Sweep()]
    assert decided(unclaimed=0, was_swept=True) == [End(Ending.STUCK)]


def test_a_rank_is_given_up_after_max_restarts() -> None:
    assert decided(past=[past(*["device"] * 3)]) == [launch(0)]
    assert decided(past=[past(*["device"] * 4)]) == [End(Ending.GAVE_UP)]
    assert decided(past=[past("device")], max_restarts=0) == [End(Ending.GAVE_UP)]
    others = [past(*["device"] * 4), idle(1)]
    assert decided(past=others) == [launch(1)]
    assert decided(past=others, open=[attempt(1)]) == []


def test_a_restart_waits_for_its_backoff() -> None:
    waiting = past("crash", "crash", ended_at=NOW)
    assert decided(past=[waiting, idle(1)]) == [launch(1)]
    assert decided(past=[waiting], now=NOW + backoff_s(2) - 0.1) == []
    assert decided(past=[waiting], now=NOW + backoff_s(2)) == [launch(0)]


def test_backoff_doubles_up_to_its_end() -> None:
    assert backoff_s(0) == 0.0
    waits = [backoff_s(failures) for failures in range(1, 40)]
    assert waits[0] == BACKOFF_FIRST_S
    assert waits[1] == 2 * waits[0]
    assert waits == sorted(waits)
    assert waits[-1] == BACKOFF_MOST_S


@pytest.mark.parametrize(
    ("rank", "failures"),
    [
        (idle(0), 0),
        (past("device", "device"), 2),
        (past("crash", "load", "io"), 3),
        (past("lost", "lost", "lost", "lost", "lost"), 0),
        (past("device", "lost"), 1),
        (past("crash", finished=1), 0),
        (past("crash", "crash", suspects=1), 0),
        (past("finished", state=AttemptState.COMPLETE), 0),
        (past("drained", "drained", state=AttemptState.STOPPED), 2),
        (past("drained", state=AttemptState.STOPPED, finished=1), 0),
        (past("killed", state=AttemptState.STOPPED), 0),
    ],
)
def test_what_counts_as_a_failed_start(rank: RankPast, failures: int) -> None:
    """Not one that was lost or killed by its parent, finished something or made a task suspect."""
    assert failures_in_a_row(rank) == failures


def test_only_failures_in_a_row_count() -> None:
    row = (
        closing(Reason("device")),
        closing(Reason("device")),
        closing(Reason("crash"), suspects=1),
        closing(Reason("device")),
    )
    assert failures_in_a_row(RankPast(Slot(0), row, (0, 0, 0, 0))) == 1
    assert failures_in_a_row(RankPast(Slot(0), row, (0, 0, 0, 5))) == 0


def restart_at(*pasts: RankPast, now: float = NOW, **known: Any) -> float | None:
    defaults: dict[str, Any] = {"tasks_left": 10, "unclaimed": 10, "open": []}
    return next_restart_at(Snapshot(past=pasts, **{**defaults, **known}), Policy(3), now)


def test_the_next_restart_is_the_first_whose_backoff_ends() -> None:
    once = past("crash", ended_at=NOW)
    twice = past("crash", "crash", rank=1, ended_at=NOW)
    assert restart_at(once, twice) == NOW + backoff_s(1)
    assert restart_at(once, twice, now=NOW + backoff_s(1)) == NOW + backoff_s(2)
    assert restart_at(idle(0), idle(1)) is None


def test_a_rank_that_gave_up_waits_for_no_restart() -> None:
    gave_up = past(*["device"] * 4, ended_at=NOW)
    assert restart_at(gave_up) is None
    assert restart_at(gave_up, past("crash", rank=1, ended_at=NOW)) == NOW + backoff_s(1)


def test_where_nobody_would_be_launched_no_restart_is_waited_for() -> None:
    waiting = past("crash", ended_at=NOW)
    assert restart_at(waiting) is not None
    assert restart_at(waiting, open=[attempt(0)]) is None, "it was started again"
    assert restart_at(waiting, unclaimed=0) is None
    assert restart_at(waiting, tasks_left=0) is None
    assert restart_at(waiting, drain=Drain("asked", NOW + 5)) is None
