"""The timer without locks: one serves for many calls, and never lets one take much too long."""

import faulthandler
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spooling import A0, make_spool

from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Options
from gpuspool.spool.timeouts import SLACK
from gpuspool.worker.timer import Timer


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    yield make_spool(tmp_path / "s", 1)
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each timer that was really set."""
    found: list[float] = []
    real = faulthandler.dump_traceback_later

    def counted(seconds: float, **more: Any) -> None:
        found.append(seconds)
        real(seconds, **more)

    monkeypatch.setattr(faulthandler, "dump_traceback_later", counted)
    return found


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("gpuspool.worker.timer.time.monotonic", lambda: self.now)


def test_without_a_limit_nothing_is_opened_and_nothing_is_set(
    layout: Layout, settings: list[float]
) -> None:
    timer = Timer(layout, A0, Options())
    timer.begin(1)
    timer.end()
    assert settings == []
    assert not layout.stacks(A0).exists()


def test_a_thousand_tiny_calls_set_one_timer(layout: Layout, settings: list[float]) -> None:
    timer = Timer(layout, A0, Options(task_timeout_s=100.0))
    for _ in range(1000):
        timer.begin(1)
    assert settings == [pytest.approx(100 * (1 + SLACK))]


def test_a_timer_that_would_go_off_too_early_is_set_anew(
    layout: Layout, settings: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of the module: a limit of 10 s."""
    clock = Clock(monkeypatch)
    timer = Timer(layout, A0, Options(task_timeout_s=10.0))
    timer.begin(1)
    for moment in (0.4, 0.99):
        clock.now = 1000.0 + moment
        timer.begin(1)
    assert len(settings) == 1
    clock.now = 1001.2
    timer.begin(1)
    assert len(settings) == 2


def test_a_timer_that_would_go_off_too_late_is_set_anew(
    layout: Layout, settings: list[float]
) -> None:
    timer = Timer(layout, A0, Options(task_timeout_s=100.0))
    for tasks in (8, 1, 8):
        timer.begin(tasks)
    assert settings == [pytest.approx(tasks * 100 * (1 + SLACK)) for tasks in (8, 1, 8)]


def test_after_the_end_the_next_call_sets_a_timer(layout: Layout, settings: list[float]) -> None:
    timer = Timer(layout, A0, Options(task_timeout_s=100.0))
    timer.begin(1)
    timer.end()
    timer.begin(1)
    assert len(settings) == 2


def test_loading_has_the_limit_of_a_stall_alone(layout: Layout, settings: list[float]) -> None:
    timer = Timer(layout, A0, Options(task_timeout_s=100.0))
    timer.begin(0)
    assert settings == []
    timer = Timer(layout, A0, Options(task_timeout_s=100.0, stall_timeout_s=50.0))
    timer.begin(0)
    assert settings == [pytest.approx(50 * (1 + SLACK))]
