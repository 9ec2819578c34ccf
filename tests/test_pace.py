"""How long the loop waits between two looks, from what it knows alone."""

from gpuspool.orchestrator.supervise.pace import (
    BLIND_FILES_PER_S,
    FILES_PER_S,
    LOOK_FILES,
    NEWS,
    NEWS_LOOK_S,
    Moment,
    Pace,
)

QUIET_S = 1.0
LONGEST_S = 10.0


def moment(
    open_attempts: int = 1,
    complete: int = 0,
    is_timed: bool = False,
    has_observer: bool = True,
    due_in_s: float | None = None,
) -> Moment:
    return Moment(open_attempts, complete, is_timed, has_observer, due_in_s)


def naps(pace: Pace, *moments: Moment) -> list[float]:
    return [pace.nap_s(one) for one in moments]


def settled(open_attempts: int) -> float:
    """The wait that a quiet run of so many attempts comes to."""
    return naps(Pace(QUIET_S, LONGEST_S, 0), *[moment(open_attempts)] * 20)[-1]


def test_without_news_each_wait_is_twice_the_last_up_to_the_budget_of_files() -> None:
    waits = naps(Pace(QUIET_S, LONGEST_S, 0), *[moment(open_attempts=4)] * 20)
    assert waits[:3] == [2 * NEWS_LOOK_S, 4 * NEWS_LOOK_S, 8 * NEWS_LOOK_S]
    assert waits[-1] == (LOOK_FILES + 2 * 4) / FILES_PER_S


def test_the_more_files_a_look_opens_the_longer_is_the_wait() -> None:
    assert settled(1) < settled(8)
    assert settled(1000) == LONGEST_S, "but progress and the heartbeat must not wait for it"


def test_much_news_makes_the_next_look_come_soon() -> None:
    much = NEWS * (LOOK_FILES + 2) + 1
    pace = Pace(QUIET_S, LONGEST_S, 0)
    quiet = naps(pace, *[moment()] * 20)[-1]
    assert quiet > NEWS_LOOK_S
    assert naps(pace, moment(complete=much), moment(complete=much + 1)) == [
        NEWS_LOOK_S,
        2 * NEWS_LOOK_S,
    ]


def test_what_was_complete_at_the_start_is_no_news() -> None:
    assert Pace(QUIET_S, LONGEST_S, 10**6).nap_s(moment(complete=10**6)) == 2 * NEWS_LOOK_S


def test_where_no_event_tells_of_what_is_due_the_wait_is_that_of_a_quiet_bell() -> None:
    pace = Pace(QUIET_S, LONGEST_S, 0)
    assert naps(pace, *[moment(is_timed=True)] * 3) == [QUIET_S] * 3


def test_where_nothing_tells_of_files_the_waits_grow_while_nothing_happens() -> None:
    pace = Pace(QUIET_S, LONGEST_S, 0)
    quiet = naps(pace, *[moment(has_observer=False)] * 20)
    assert quiet[:3] == [QUIET_S, 2 * QUIET_S, 4 * QUIET_S]
    assert quiet[-1] == LONGEST_S
    news = naps(pace, moment(has_observer=False, complete=1), moment(has_observer=False))
    assert news[0] == QUIET_S
    soon = moment(has_observer=False, complete=1, due_in_s=LONGEST_S / 2)
    assert naps(pace, *[soon] * 3) == [QUIET_S] * 3, "something is about to happen"
    later = moment(has_observer=False, complete=1, due_in_s=3600.0)
    assert naps(pace, *[later] * 20)[-1] == LONGEST_S


def test_where_nothing_tells_of_files_many_ranks_are_looked_at_less_often() -> None:
    def while_tasks_end(ranks: int) -> float:
        pace = Pace(QUIET_S, LONGEST_S, 0)
        moments = [moment(ranks, complete, has_observer=False) for complete in range(1, 21)]
        return naps(pace, *moments)[-1]

    assert while_tasks_end(8) == QUIET_S
    assert while_tasks_end(100) == (LOOK_FILES + 100) / BLIND_FILES_PER_S
    assert while_tasks_end(1000) == LONGEST_S, "but progress and the heartbeat must not wait for it"


def test_no_wait_outlasts_the_next_restart() -> None:
    pace = Pace(QUIET_S, LONGEST_S, 0)
    naps(pace, *[moment()] * 20)
    assert pace.nap_s(moment(due_in_s=0.7)) == 0.7
    assert pace.nap_s(moment(due_in_s=60.0)) == settled(1)
    assert pace.nap_s(moment(is_timed=True, due_in_s=0.01)) == 0.01
    assert pace.nap_s(moment(due_in_s=-0.1)) == 0.0, "it became due while something was done"


def test_a_rank_that_gave_up_does_not_shorten_the_wait() -> None:
    """It waits for no restart, so the loop looks as seldom as if nothing had ever failed."""
    pace = Pace(QUIET_S, LONGEST_S, 0)
    assert naps(pace, *[moment(open_attempts=3, due_in_s=None)] * 20)[-1] == settled(3)
