"""The clocks of an attempt are read by another thread, between any two steps of the main one."""

import sys
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import pytest
from test_execute import Settling, executor_of, run

from gpuspool.worker import call
from gpuspool.worker.call import Call
from gpuspool.worker.clocks import Clocks, Stopwatch


def spy(code: Any, look: Any) -> None:
    """Look before each line that a function runs, from now on."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not code:
            return None
        if event == "line":
            look()
        return trace

    sys.settrace(trace)


def test_a_stopwatch_is_true_before_and_after_each_of_its_steps() -> None:
    watch = Stopwatch()
    watch.start(100.0)
    assert watch.read(103.0) == 3.0
    watch.stop(104.0)
    read: list[float] = []
    try:
        spy(Stopwatch.start.__code__, lambda: read.append(watch.read(200.0)))
        watch.start(200.0)
        spy(Stopwatch.stop.__code__, lambda: read.append(watch.read(206.0)))
        watch.stop(206.0)
    finally:
        sys.settrace(None)
    assert read[0] == 4.0
    assert len(read) >= 4
    assert set(read[1:]) == {10.0}
    assert watch.read(1000.0) == watch.total_s == 10.0


def test_a_stopwatch_that_is_stopped_twice_has_counted_once() -> None:
    watch = Stopwatch()
    watch.start(1.0)
    watch.stop(3.0)
    watch.stop(9.0)
    assert watch.read(10.0) == 2.0


@pytest.mark.parametrize("batch_size", [None, 4])
def test_whoever_reads_within_a_call_never_sees_its_time_twice_nor_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int | None
) -> None:
    """On a clock that moves on by 1 whenever it is read, and by 1000 in each call."""
    now = 0.0
    reads: list[float] = []

    def tick() -> float:
        nonlocal now
        now += 1.0
        return now

    def work(task: Any, ctx: Any) -> Any:
        nonlocal now
        now += 1000.0
        return [1] * len(task) if batch_size else 1

    monkeypatch.setattr(call, "perf_counter", tick)
    executor: Settling = executor_of(tmp_path, work, batch_size)
    watch = executor.call._clock
    step = Call.make_single if batch_size is None else Call.make
    try:
        spy(step.__code__, lambda: reads.append(watch.read(now)))
        run(executor, 8)
    finally:
        sys.settrace(None)
    n_calls = 8 if batch_size is None else 2
    assert watch.total_s == pytest.approx(1000.0 * n_calls, abs=10.0 * n_calls)
    assert len(reads) > 5 * n_calls
    # Before each call, and after it, with the few moments in which the clock was read.
    seen = {round(read / 1000.0) for read in reads}
    assert seen == set(range(n_calls + 1))
    assert reads == sorted(reads)


def test_the_seconds_of_an_attempt_are_all_told_at_any_moment() -> None:
    clocks = Clocks()
    told = [clocks.spent()]
    clocks.begin_load()
    told.append(clocks.spent())
    clocks.end_load()
    clocks.runs.start(perf_counter())
    clocks.inputs.start(perf_counter())
    told.append(clocks.spent())
    clocks.inputs.stop(perf_counter())
    clocks.calls.start(perf_counter())
    told.append(clocks.spent())
    clocks.calls.stop(perf_counter())
    told.append(clocks.spent())
    clocks.runs.stop(perf_counter())
    clocks.begin_close()
    told.append(clocks.spent())
    for spent in told:
        assert sum(spent.idle_s.values()) + spent.busy_s == pytest.approx(spent.seconds, abs=0.005)
        assert min(spent.idle_s.values()) >= 0
    assert [spent.seconds for spent in told] == sorted(spent.seconds for spent in told)
    assert "close" in told[-1].idle_s
