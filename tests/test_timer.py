"""The timer counts the time for which a process ran, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from spooling import A0, make_spool

from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Options
from gpuspool.spool.timeouts import SLACK
from gpuspool.worker.timer import LONGEST_TICK_S, NOTHING, Count, Timer, _Hand, tick_s


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 1)


def timer_of(layout: Layout, **options: Any) -> Timer:
    return Timer(layout, A0, Options(**options), lambda: True)


def test_without_a_limit_nothing_is_opened_and_nothing_is_in_hand(layout: Layout) -> None:
    timer = timer_of(layout)
    timer.start(lambda: None)
    timer.begin(1)
    timer.publish()
    assert timer._hand is NOTHING
    assert not layout.stacks(A0).exists()


def test_what_runs_is_counted_from_its_own_beginning() -> None:
    count = Count(1.0, 100.0)
    first, second = _Hand(10.0), _Hand(10.0)
    count.tick(first, 101.0)
    assert count.run_s == 0.0
    count.tick(first, 102.0)
    count.tick(first, 103.5)
    assert count.run_s == 2.5
    count.tick(second, 104.5)
    assert count.run_s == 0.0, "another call, even one that is like the first"


def test_a_standstill_counts_as_two_ticks_however_long_it_was() -> None:
    count = Count(1.0, 0.0)
    hand = _Hand(10.0)
    count.tick(hand, 1.0)
    count.tick(hand, 2.0)
    count.tick(hand, 5000.0)
    assert count.run_s == 3.0


@pytest.mark.parametrize("limit", [0.5, 2.0, 10.0, 3600.0])
def test_two_ticks_are_no_more_than_the_slack(limit: float) -> None:
    assert 2 * tick_s(Options(task_timeout_s=limit)) <= SLACK * limit + 1e-9
    assert tick_s(Options(task_timeout_s=limit)) <= LONGEST_TICK_S
    both = Options(task_timeout_s=limit, stall_timeout_s=limit / 2)
    assert tick_s(both) <= tick_s(Options(task_timeout_s=limit))


def test_a_batch_has_the_limit_of_all_its_tasks(layout: Layout) -> None:
    timer = timer_of(layout, task_timeout_s=100.0)
    for tasks in (8, 1):
        timer.begin(tasks)
        assert timer._hand.limit_s == tasks * 100
    timer.end()
    assert timer._hand.limit_s is None


def test_loading_and_publishing_have_the_limit_of_a_stall_alone(layout: Layout) -> None:
    timer = timer_of(layout, task_timeout_s=100.0)
    timer.begin(0)
    assert timer._hand.limit_s is None
    timer.publish()
    assert timer._hand.limit_s is None
    timer = timer_of(layout, task_timeout_s=10.0, stall_timeout_s=50.0)
    timer.begin(0)
    assert timer._hand.limit_s == 50
    timer.publish()
    assert timer._hand.limit_s == 50
