"""Each row of the table at the top of orchestrator/decide.py: what is done next, from what is known
alone.
"""

from typing import Any

import pytest

from gpuspool.orchestrator.supervise.decide import (
    BACKOFF_S,
    FAREWELL_S,
    Action,
    Close,
    End,
    Kill,
    Launch,
    OpenAttempt,
    Policy,
    RankPast,
    Snapshot,
    Sweep,
    backoff_s,
    decide,
    failures_in_a_row,
)
from gpuspool.spool.records import Closing
from gpuspool.spool.states import Life

NOW = 1000.0


def decided(now: float = NOW, max_restarts: int = 3, **known: Any) -> list[Action]:
    defaults: dict[str, Any] = {
        "tasks_left": 10,
        "unclaimed": 10,
        "open": [],
        "past": [RankPast(0), RankPast(1)],
    }
    return decide(Snapshot(**{**defaults, **known}), Policy(max_restarts), now)


def attempt(rank: int, life: str = Life.ALIVE, is_starting: bool = False) -> OpenAttempt:
    return OpenAttempt(f"rank-{rank:04d}.a00", rank, life, is_starting)


def closing(reason: str, state: str = "failed", suspects: int = 0) -> Closing:
    return Closing(
        attempt="rank-0000.a00", state=state, reason=reason, by="parent", suspects=suspects
    )


def past(
    *reasons: str, rank: int = 0, finished: int = 0, ended_at: float = 0.0, **fields: Any
) -> RankPast:
    closings = tuple(closing(reason, **fields) for reason in reasons)
    return RankPast(rank, closings, (finished,) * len(closings), ended_at)


@pytest.mark.parametrize(
    "known", [{}, {"tasks_left": 0}, {"is_draining": True, "kill_at": 0.0}, {"unclaimed": 0}]
)
def test_the_dead_are_closed_before_anything_else(known: dict[str, Any]) -> None:
    lives = [attempt(0, Life.DEAD), attempt(1), attempt(2, Life.DEAD), attempt(3, Life.ELSEWHERE)]
    assert decided(open=lives, **known) == [Close("rank-0000.a00"), Close("rank-0002.a00")]


def test_all_done_waits_for_attempts_to_end_themselves() -> None:
    assert decided(tasks_left=0, unclaimed=0, finished_at=NOW) == [End("finished")]
    assert decided(tasks_left=0, open=[attempt(0)], finished_at=NOW - FAREWELL_S / 2) == []
    late = {"tasks_left": 0, "finished_at": NOW - FAREWELL_S - 1}
    assert decided(open=[attempt(0), attempt(1)], **late) == [
        Kill("rank-0000.a00"),
        Kill("rank-0001.a00"),
    ]


def test_all_done_ends_finished_even_while_draining_or_with_every_rank_given_up() -> None:
    assert decided(tasks_left=0, is_draining=True, kill_at=NOW) == [End("finished")]
    assert decided(tasks_left=0, past=[past(*["device"] * 9)]) == [End("finished")]


def test_a_drain_waits_for_the_tasks_in_hand_and_starts_nothing() -> None:
    assert decided(is_draining=True, kill_at=NOW + 5, open=[attempt(0)]) == []
    assert decided(is_draining=True, kill_at=NOW + 5) == [End("drained")]


def test_a_drain_kills_past_the_grace() -> None:
    lives = [attempt(0), attempt(1)]
    assert decided(is_draining=True, kill_at=NOW - 1, open=lives) == [
        Kill("rank-0000.a00"),
        Kill("rank-0001.a00"),
    ]


def test_a_drain_does_not_wait_for_what_may_live_on_another_host() -> None:
    assert decided(is_draining=True, kill_at=NOW + 5, open=[attempt(0, Life.ELSEWHERE)]) == [
        End("drained")
    ]


@pytest.mark.parametrize(
    "known", [{"tasks_left": 0, "finished_at": NOW - 99}, {"is_draining": True, "kill_at": NOW - 1}]
)
def test_an_end_waits_only_for_what_is_proved_alive_here(known: dict[str, Any]) -> None:
    """What may live on another host ends itself, or is closed by its own parent or the next resume."""
    assert decided(open=[attempt(0), attempt(1, Life.ELSEWHERE)], **known) == [
        Kill("rank-0000.a00")
    ]
    assert isinstance(decided(open=[attempt(1, Life.ELSEWHERE)], **known)[0], End)


def test_a_job_that_loads_nowhere_ends_the_run() -> None:
    assert decided(past=[past("load"), past("load", rank=1)]) == [End("load")]
    assert decided(past=[past("load"), RankPast(1)]) == [End("load")]


def test_a_job_that_loads_somewhere_does_not_end_the_run() -> None:
    assert decided(past=[past("load"), RankPast(1)], open=[attempt(1)]) != [End("load")]
    assert decided(past=[past("load"), past("finished", rank=1, state="complete", finished=3)]) == [
        Launch(0),
        Launch(1),
    ]
    assert decided(past=[past("load", "crash")]) == [Launch(0)]


def test_ranks_without_an_open_attempt_are_launched() -> None:
    assert decided() == [Launch(0), Launch(1)]
    assert decided(open=[attempt(0)]) == [Launch(1)]
    assert decided(open=[attempt(0), attempt(1)]) == []


def test_an_attempt_of_a_rank_that_this_epoch_does_not_have_is_no_hindrance() -> None:
    assert decided(open=[attempt(7)], past=[RankPast(0)]) == [Launch(0)]


def test_no_more_are_launched_than_there_is_work_for() -> None:
    assert decided(unclaimed=1) == [Launch(0)]
    assert decided(unclaimed=1, open=[attempt(0, is_starting=True)]) == []
    assert decided(unclaimed=2, open=[attempt(0, is_starting=True)]) == [Launch(1)]
    assert decided(unclaimed=1, open=[attempt(0)]) == [Launch(1)]


def test_nothing_to_claim_waits_while_anybody_lives() -> None:
    assert decided(unclaimed=0, open=[attempt(0)]) == []
    assert decided(unclaimed=0, open=[attempt(0, Life.ELSEWHERE)]) == []


def test_nothing_to_claim_and_nobody_alive_is_swept_once() -> None:
    assert decided(unclaimed=0) == [Sweep()]
    assert decided(unclaimed=0, was_swept=True) == [End("stuck")]


def test_a_rank_is_given_up_after_max_restarts() -> None:
    assert decided(past=[past(*["device"] * 3)]) == [Launch(0)]
    assert decided(past=[past(*["device"] * 4)]) == [End("gave up")]
    assert decided(past=[past("device")], max_restarts=0) == [End("gave up")]
    others = [past(*["device"] * 4), RankPast(1)]
    assert decided(past=others) == [Launch(1)]
    assert decided(past=others, open=[attempt(1)]) == []


def test_a_restart_waits_for_its_backoff() -> None:
    waiting = past("crash", "crash", ended_at=NOW)
    assert decided(past=[waiting, RankPast(1)]) == [Launch(1)]
    assert decided(past=[waiting], now=NOW + backoff_s(2) - 0.1) == []
    assert decided(past=[waiting], now=NOW + backoff_s(2)) == [Launch(0)]


def test_backoff_doubles_up_to_its_end() -> None:
    assert backoff_s(0) == 0.0
    waits = [backoff_s(failures) for failures in range(1, 40)]
    assert waits[0] == BACKOFF_S[0]
    assert waits[1] == 2 * waits[0]
    assert waits == sorted(waits)
    assert waits[-1] == BACKOFF_S[1]


@pytest.mark.parametrize(
    ("rank", "failures"),
    [
        (RankPast(0), 0),
        (past("device", "device"), 2),
        (past("crash", "load", "io"), 3),
        (past("lost", "lost", "lost", "lost", "lost"), 0),
        (past("device", "lost"), 1),
        (past("crash", finished=1), 0),
        (past("crash", "crash", suspects=1), 0),
        (past("finished", state="complete"), 0),
        (past("drained", state="stopped"), 0),
        (past("killed", state="stopped"), 0),
    ],
)
def test_what_counts_as_a_failed_start(rank: RankPast, failures: int) -> None:
    """Neither one that was lost, stopped or finished something, nor one that made a task suspect."""
    assert failures_in_a_row(rank) == failures


def test_only_failures_in_a_row_count() -> None:
    row = (closing("device"), closing("device"), closing("crash", suspects=1), closing("device"))
    assert failures_in_a_row(RankPast(0, row, (0, 0, 0, 0))) == 1
    assert failures_in_a_row(RankPast(0, row, (0, 0, 0, 5))) == 0
