"""Each row of the table at the top of supervise/decide.py: what is done next, from what is known
alone.
"""

from typing import Any

import pytest

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.decide import (
    FAREWELL_S,
    Action,
    Break,
    Close,
    End,
    Kill,
    Launch,
    Mend,
    OpenAttempt,
    Policy,
    RankPast,
    Rule,
    SayFinished,
    Snapshot,
    Stop,
    Sweep,
    decide,
    next_restart_at,
    ranks_without_news,
)
from gpuspool.orchestrator.supervise.drain import Drain
from gpuspool.orchestrator.supervise.opinions import (
    BROKEN_TASKS,
    NEXT_PATIENCE,
    OUTAGE_S,
    PATIENCE,
    Trial,
    pause_s,
)
from gpuspool.spool.states import Ending, Life, Reason

NOW = 1000.0


def decided(now: float = NOW, max_restarts: int = 3, **known: Any) -> list[Action]:
    defaults: dict[str, Any] = {
        "tasks_left": 10,
        "unclaimed": 10,
        "open": [],
        "past": [idle(0), idle(1)],
    }
    return decide(Snapshot(**{**defaults, **known}), Policy(max_restarts), now)


def attempt(
    rank: int, life: Life = Life.ALIVE, is_starting: bool = False, is_idle: bool = False
) -> OpenAttempt:
    return OpenAttempt(f"rank-{rank:04d}.a00", rank, life, is_starting, is_idle)


def launch(rank: int, patience: int = PATIENCE, is_doubted: bool | None = None) -> Launch:
    if is_doubted is None:
        is_doubted = patience == NEXT_PATIENCE
    return Launch(Slot(rank), patience, is_doubted)


# An attempt that failed with no task in hand, one in which a task failed and none completed, and
# one that completed something.
FAULT = Trial(is_fault=True)
IN_VAIN = Trial(failed=1)
GOOD = Trial(completed=1)


def idle(rank: int) -> RankPast:
    return RankPast(Slot(rank))


def past(
    *trials: Trial, rank: int = 0, ended_at: float = 0.0, device: str = "", **fields: Any
) -> RankPast:
    return RankPast(
        Slot(rank, device), trials=trials, device_trials=trials, ended_at=ended_at, **fields
    )


def ended(*reasons: str, rank: int = 0) -> RankPast:
    return RankPast(Slot(rank), reasons=frozenset(map(Reason, reasons)))


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
    assert decided(tasks_left=0, past=[past(*[FAULT] * 9)]) == [End(Ending.FINISHED)]


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
    assert decided(past=[ended("load"), ended("load", rank=1)]) == [End(Ending.LOAD)]
    assert decided(past=[ended("load"), idle(1)]) == [End(Ending.LOAD)]


def test_a_job_that_loads_somewhere_does_not_end_the_run() -> None:
    assert decided(past=[ended("load"), idle(1)], open=[attempt(1)]) != [End(Ending.LOAD)]


def test_while_it_is_cold_one_rank_starts_alone() -> None:
    first = decided(is_one_first=True, is_cold=True)
    assert first == [launch(0)]
    for is_starting in (True, False):
        running = [attempt(0, is_starting=is_starting)]
        assert decided(is_one_first=True, is_cold=True, open=running) == []
        assert decided(is_one_first=True, open=running) == [launch(1)]


def test_a_job_that_did_not_load_in_the_first_rank_is_tried_where_others_waited_for_it() -> None:
    known = {"is_one_first": True, "past": [ended("load"), idle(1), idle(2)]}
    assert launch(1) in decided(**known)
    assert launch(2) in decided(**known)
    assert decided(**known, unclaimed=1) == [End(Ending.LOAD)]
    assert decided(is_one_first=True, past=[ended("load", rank=rank) for rank in range(3)]) == [
        End(Ending.LOAD)
    ]
    assert decided(past=[ended("load"), ended("finished", rank=1)]) == [launch(0), launch(1)]
    assert decided(past=[ended("load", "crash")]) == [launch(0)]


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


def test_where_tasks_only_fail_what_is_stranded_is_looked_for() -> None:
    known = {"doubtful": 2, "barren": 1, "tasks": 24, "complete": 14, "finished_last_at": NOW}
    assert decided(**known) == [Sweep()]
    assert decided(**known, was_swept=True) == [launch(0), launch(1)]
    assert decided(**known, open=[attempt(0)]) == [launch(1)]


def test_a_ruling_that_takes_time_is_waited_for() -> None:
    assert decided(unclaimed=0, is_ruling_awaited=True) == []
    assert decided(unclaimed=1, is_ruling_awaited=True) == [launch(0)]


def test_nothing_to_claim_and_nobody_alive_is_swept_once() -> None:
    assert decided(unclaimed=0) == [Sweep()]
    assert decided(unclaimed=0, was_swept=True) == [End(Ending.STUCK)]


def test_a_rank_is_given_up_after_max_restarts() -> None:
    assert decided(past=[past(*[FAULT] * 3)]) == [launch(0)]
    assert decided(past=[past(*[FAULT] * 4)]) == [End(Ending.GAVE_UP)]
    assert decided(past=[past(FAULT)], max_restarts=0) == [End(Ending.GAVE_UP)]
    others = [past(*[FAULT] * 4), idle(1)]
    assert decided(past=others) == [launch(1)]
    assert decided(past=others, open=[attempt(1)]) == []


def test_a_restart_waits_for_its_pause() -> None:
    waiting = past(FAULT, FAULT, ended_at=NOW)
    wait_s = pause_s(waiting.trials, 0)
    assert decided(past=[waiting, idle(1)]) == [launch(1)]
    assert decided(past=[waiting], now=NOW + wait_s - 0.1) == []
    assert decided(past=[waiting], now=NOW + wait_s) == [launch(0)]


def test_doubtful_tasks_are_ruled_before_anything_is_started_or_drained() -> None:
    assert decided(is_ruling_due=True) == [Rule()]
    assert decided(is_ruling_due=True, drain=Drain("asked", NOW + 5)) == [Rule()]
    assert decided(is_ruling_due=True, tasks_left=0) == [End(Ending.FINISHED)]


def test_a_fresh_process_gets_less_patience_where_the_last_one_did_nothing() -> None:
    known = {"complete": 1, "tasks": 10}
    assert decided(past=[past(IN_VAIN)], **known) == [launch(0, NEXT_PATIENCE)]
    assert decided(past=[past(GOOD)], **known) == [launch(0)]
    new = [launch(0, PATIENCE, is_doubted=True)]
    assert decided(past=[past(IN_VAIN)], tasks=10) == new, "does the job work at all?"


def test_a_job_of_which_nothing_ever_completes_ends_the_run_early() -> None:
    known = {"tasks": 99, "tasks_left": 99, "doubtful": BROKEN_TASKS, "doubting": 2}
    tried = [past(IN_VAIN, failed_at=NOW), past(IN_VAIN, rank=1)]
    assert decided(past=tried, **known) == [Break(Ending.BROKEN)]
    for less in (
        {"complete": 1},
        {"doubting": 1},
        {"doubtful": BROKEN_TASKS - 1},
        {"past": [*tried, idle(2)], "open": [attempt(2)]},
        {"past": [*tried, past(Trial(failed=1), rank=2)], "open": [attempt(2)]},
    ):
        assert Break(Ending.BROKEN) not in decided(**{"past": tried, **known, **less}), less
    a_row = [*tried, past(Trial(failed=PATIENCE), rank=2)]
    assert decided(past=a_row, open=[attempt(2)], **known) == [Break(Ending.BROKEN)]
    keep_going = Policy(max_restarts=3, keep_going=True)
    snapshot = Snapshot(unclaimed=9, open=[], past=tried, **known)
    assert Break(Ending.BROKEN) not in decide(snapshot, keep_going, NOW)


def test_in_a_small_run_a_third_of_all_tasks_is_enough() -> None:
    tried = [past(IN_VAIN)]
    known = {"tasks": 3, "tasks_left": 3, "doubting": 2}
    assert decided(past=tried, doubtful=1, **known) == [Break(Ending.BROKEN)]
    assert decided(past=tried, doubtful=0, **known) != [Break(Ending.BROKEN)]


def test_an_outage_is_waited_out_for_so_long_and_no_longer() -> None:
    known = {"tasks": 99, "complete": 5, "doubtful": 9, "doubting": 2, "past": [past(IN_VAIN)]}
    late = NOW + OUTAGE_S
    assert decided(finished_last_at=NOW, now=late, **known) == [Break(Ending.OUTAGE)]
    assert decided(finished_last_at=NOW, now=late - 1, **known) != [Break(Ending.OUTAGE)]
    busy = {**known, "past": [idle(0)], "open": [attempt(0)]}
    assert decided(finished_last_at=NOW, now=late, **busy) == [], "it works on a long task"
    failed = {**known, "past": [past(failed_at=NOW)], "open": [attempt(0)]}
    assert decided(finished_last_at=NOW, now=late, **failed) == [], "so does this one, since then"
    failing = {**failed, "past": [past(failed_at=late - 1)]}
    assert decided(finished_last_at=NOW, now=late, **failing) == [Break(Ending.OUTAGE)]
    waiting = {**busy, "open": [attempt(0, is_idle=True)]}
    assert decided(finished_last_at=NOW, now=late, **waiting) == [Break(Ending.OUTAGE)]


def test_a_rank_that_never_loads_its_job_takes_no_work_from_one_that_has_worked() -> None:
    starting = {"unclaimed": 1, "open": [attempt(0, is_starting=True)], "complete": 5, "tasks": 9}
    hung = past(has_begun=False)
    assert decided(past=[hung, past(GOOD, rank=1)], **starting) == [launch(1)]
    assert decided(past=[hung, past(rank=1, has_begun=False)], **starting) == []
    assert decided(past=[past(GOOD), past(GOOD, rank=1)], **starting) == []


def test_in_an_outage_one_place_after_the_other_is_tried() -> None:
    known = {"complete": 5, "tasks": 99}
    first, second = past(IN_VAIN, ended_at=2.0), past(IN_VAIN, rank=1, ended_at=1.0)
    assert decided(past=[first, second], **known) == [launch(1, NEXT_PATIENCE)]
    assert decided(past=[first, second], open=[attempt(1)], **known) == []
    over = past(IN_VAIN, rank=1, ended_at=1.0, gets_on=True)
    assert decided(past=[first, over], open=[attempt(1)], **known) == [launch(0, NEXT_PATIENCE)]


def test_a_place_in_doubt_waits_for_second_opinions_while_others_get_on() -> None:
    doubtful = past(IN_VAIN, IN_VAIN, ended_at=NOW)
    told = past(IN_VAIN, IN_VAIN, ended_at=NOW, acquitted=1)
    shared = past(IN_VAIN, IN_VAIN, ended_at=NOW, failed_elsewhere=1)
    getting_on = [attempt(1)]
    assert ranks_without_news([doubtful, idle(1)], getting_on) == {0}
    assert ranks_without_news([doubtful, past(IN_VAIN, rank=1, gets_on=True)], getting_on) == {0}
    assert not ranks_without_news([told, idle(1)], getting_on)
    assert not ranks_without_news([shared, idle(1)], getting_on)
    assert not ranks_without_news([doubtful, idle(1)], []), "nobody else could tell"
    assert not ranks_without_news([doubtful, past(IN_VAIN, rank=1)], getting_on), "it fails too"

    known = {"complete": 5, "tasks": 99, "open": getting_on, "now": NOW + 60}
    waiting = {**known, "without_news": frozenset({0})}
    assert decided(past=[doubtful, idle(1)], **waiting) == []
    assert decided(past=[doubtful, idle(1)], **known) == [launch(0, NEXT_PATIENCE)]


def restart_at(*pasts: RankPast, now: float = NOW, **known: Any) -> float | None:
    defaults: dict[str, Any] = {"tasks_left": 10, "unclaimed": 10, "open": []}
    return next_restart_at(Snapshot(past=pasts, **{**defaults, **known}), Policy(3), now)


def test_the_next_restart_is_the_first_whose_backoff_ends() -> None:
    once = past(FAULT, ended_at=NOW)
    twice = past(FAULT, FAULT, rank=1, ended_at=NOW)
    first, second = NOW + pause_s(once.trials, 0), NOW + pause_s(twice.trials, 0)
    assert restart_at(once, twice) == first
    assert restart_at(once, twice, now=first) == second
    assert restart_at(idle(0), idle(1)) is None


def test_a_rank_that_gave_up_waits_for_no_restart() -> None:
    gave_up = past(*[FAULT] * 4, ended_at=NOW)
    other = past(FAULT, rank=1, ended_at=NOW)
    assert restart_at(gave_up) is None
    assert restart_at(gave_up, other) == NOW + pause_s(other.trials, 0)


def test_where_nobody_would_be_launched_no_restart_is_waited_for() -> None:
    waiting = past(FAULT, ended_at=NOW)
    assert restart_at(waiting) is not None
    assert restart_at(waiting, open=[attempt(0)]) is None, "it was started again"
    assert restart_at(waiting, unclaimed=0) is None
    assert restart_at(waiting, tasks_left=0) is None
    assert restart_at(waiting, drain=Drain("asked", NOW + 5)) is None
