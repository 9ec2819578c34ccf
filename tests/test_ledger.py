"""The state tables: each row, from the ledger alone and from a spool on disk."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spooling import (
    A0,
    B0,
    begin,
    close,
    finish,
    indices,
    make_spool,
    take,
    task,
    verdicts,
    view_of,
)

from gpuspool.spool.death import Told
from gpuspool.spool.ledger import Ledger, run_state
from gpuspool.spool.manifest import publish_manifest, publish_orphans
from gpuspool.spool.records import Closing, Error, TaskFailure
from gpuspool.spool.states import LineState, Verdict
from gpuspool.spool.sweep import stranded_tasks


def fed(tasks: int, *lines: tuple[int, int, str]) -> Ledger:
    """A ledger that was fed lines, each a task, a round and a state."""
    ledger = Ledger(tasks)
    for line in lines:
        ledger.feed(line[0], line[1], LineState(line[2]))
    return ledger


def test_a_task_that_was_only_started_has_no_verdict() -> None:
    ledger = fed(3, (1, 0, "started"))
    assert [ledger.verdict(index) for index in range(3)] == [None, None, None]
    assert list(ledger.unfinished()) == [0, 1, 2]
    assert not ledger.is_finished


@pytest.mark.parametrize("complete_round", [0, 1, 2])
@pytest.mark.parametrize("is_first", [True, False])
def test_complete_in_any_round_wins_over_failed(complete_round: int, is_first: bool) -> None:
    lines = [(0, complete_round, "complete"), (0, 0, "failed"), (0, 1, "failed")]
    ledger = fed(1, *(lines if is_first else lines[::-1]))
    ledger.raise_round(0, 2)
    assert ledger.verdict(0) == "complete"
    assert (ledger.n_complete, ledger.n_failed) == (1, 0)


def test_a_failure_counts_in_the_newest_round_alone() -> None:
    ledger = fed(2, (0, 0, "failed"), (1, 0, "failed"))
    assert ledger.verdict(0) == "failed"
    ledger.raise_round(0, 1)
    assert ledger.verdict(0) is None
    assert list(ledger.unfinished()) == [0]
    assert sorted(ledger.failed()) == [1]
    ledger.feed(0, 0, LineState.FAILED)
    assert ledger.verdict(0) is None, "a line of the old round that comes late"
    ledger.feed(0, 1, LineState.FAILED)
    assert ledger.verdict(0) == "failed"
    assert ledger.is_finished


@pytest.mark.parametrize("before", ["nothing", "failures", "costs", "a redo"])
def test_complete_tasks_that_are_fed_together_count_as_one_by_one(before: str) -> None:
    ledgers = fed(5, (3, 0, "complete")), fed(5, (3, 0, "complete"))
    tasks = [0, 3, 1, 0]
    for ledger in ledgers:
        if before == "failures":
            ledger.feed(1, 0, LineState.FAILED)
            ledger.feed(2, 0, LineState.FAILED)
        if before == "costs":
            ledger.weigh([1.0, 2.0, 4.0, 8.0, 16.0])
        if before == "a redo":
            ledger.redo(0, 1)
    ledgers[0].feed_complete(tasks)
    for index in tasks:
        ledgers[1].feed(index, 0, LineState.COMPLETE)
    together, single = (
        (one.n_complete, one.n_failed, one.duplicates, one.cost_finished, bytes(one.complete))
        for one in ledgers
    )
    assert together == single
    assert together[2] == (1 if before == "a redo" else 2)


def test_a_round_is_never_lowered() -> None:
    ledger = fed(1, (0, 1, "failed"))
    ledger.raise_round(0, 2)
    ledger.raise_round(0, 1)
    assert ledger.round_of(0) == 2
    assert ledger.verdict(0) is None


def test_nobody_needs_to_run_a_line_once_its_round_failed_or_its_task_is_complete() -> None:
    ledger = fed(3, (0, 1, "failed"), (1, 0, "complete"))
    assert [ledger.is_finished_in(0, round_) for round_ in (0, 1, 2)] == [True, True, False]
    assert ledger.is_finished_in(1, 7)
    assert not ledger.is_finished_in(2, 0)


def test_a_task_that_completes_twice_counts_once_and_is_told() -> None:
    ledger = fed(2, (0, 0, "complete"), (0, 1, "complete"), (0, 0, "complete"))
    assert (ledger.n_complete, ledger.duplicates) == (1, 2)
    assert not ledger.is_finished


def test_what_ran_twice_before_a_redo_is_told_alike_whenever_the_redo_is_read() -> None:
    ledger = fed(1, (0, 0, "complete"), (0, 0, "complete"), (0, 1, "complete"))
    ledger.redo(0, 1)
    assert (ledger.n_complete, ledger.duplicates) == (1, 0)
    ledger.feed(0, 1, LineState.COMPLETE)
    assert (ledger.n_complete, ledger.duplicates) == (1, 1)
    ledger.redo(0, 2)
    assert (ledger.n_complete, ledger.duplicates) == (0, 0)


def test_a_task_that_fails_twice_in_a_round_counts_once() -> None:
    ledger = fed(1, (0, 0, "failed"), (0, 0, "failed"))
    assert (ledger.n_failed, ledger.duplicates) == (1, 0)


def test_a_task_that_nobody_can_describe_has_failed_unless_it_is_complete() -> None:
    ledger = fed(3, (1, 0, "complete"))
    ledger.unreadable = {0, 1}
    assert [ledger.verdict(index) for index in range(3)] == ["failed", "complete", None]
    assert sorted(ledger.failed()) == [0]
    assert list(ledger.unfinished()) == [2]


@pytest.mark.parametrize("index", [-1, 3, 10**9])
def test_a_task_of_another_run_is_refused(index: int) -> None:
    ledger = Ledger(3)
    for state in LineState:
        with pytest.raises(IndexError):
            ledger.feed(index, 0, state)
    with pytest.raises(IndexError):
        ledger.raise_round(index, 1)
    assert list(ledger.unfinished()) == [0, 1, 2]


def test_what_is_finished_is_weighed_by_cost_where_costs_differ() -> None:
    ledger = Ledger(3)
    ledger.weigh([1.0, 10.0, 100.0])
    for line in [(1, 0, "complete"), (1, 0, "complete"), (2, 0, "failed"), (0, 0, "complete")]:
        ledger.feed(line[0], line[1], LineState(line[2]))
    assert ledger.cost_finished == 111.0
    ledger.feed(2, 1, LineState.COMPLETE)
    assert ledger.cost_finished == 111.0, "what failed and completed counts once"
    ledger.redo(1, 1)
    assert ledger.cost_finished == 101.0
    assert fed(3, (2, 0, "complete")).cost_finished == 1.0


tasks = st.integers(0, 4)
states = st.sampled_from([LineState.COMPLETE, LineState.FAILED, LineState.STARTED])
fed_lines = st.tuples(tasks, st.integers(0, 3), states)
# No two sums of these are the same.
WEIGHTS = [1.0, 2.0, 4.0, 8.0, 16.0]
raised_rounds = st.tuples(tasks, st.integers(1, 3))
redone_rounds = st.tuples(st.just("redo"), tasks, st.integers(1, 3))
unreadable_tasks = st.frozensets(tasks)


def tell(ledger: Ledger, event: tuple[object, ...] | frozenset[int]) -> None:
    """Tell a ledger of a line, of a new round, of a redo, or of the tasks unreadable now."""
    match event:
        case frozenset():
            ledger.unreadable = event
        case (int(task), int(round_), LineState() as state):
            ledger.feed(task, round_, state)
        case (int(task), int(round_)):
            ledger.raise_round(task, round_)
        case ("redo", int(task), int(round_)):
            ledger.redo(task, round_)
        case _:
            pytest.fail(f"{event!r}")


@given(st.lists(fed_lines | raised_rounds | redone_rounds), st.randoms(use_true_random=False))
def test_the_order_in_which_lines_are_read_does_not_matter(
    events: list[tuple[object, ...]], rng: random.Random
) -> None:
    def outcome(events: list[tuple[object, ...]]) -> tuple[object, ...]:
        ledger = Ledger(5)
        ledger.weigh(WEIGHTS)
        for event in events:
            tell(ledger, event)
        finished = [WEIGHTS[index] for index in range(5) if ledger.verdict(index) is not None]
        assert ledger.cost_finished == sum(finished)
        assert ledger.n_complete + ledger.n_failed + len(list(ledger.unfinished())) == 5
        assert ledger.is_finished == (list(ledger.unfinished()) == [])
        return (
            [ledger.verdict(index) for index in range(5)],
            ledger.duplicates,
            ledger.cost_finished,
        )

    shuffled = list(events)
    rng.shuffle(shuffled)
    assert outcome(events) == outcome(shuffled)


@given(st.lists(fed_lines | raised_rounds | redone_rounds | unreadable_tasks))
def test_the_counts_that_are_kept_equal_a_recount_after_each_event(
    events: list[tuple[object, ...] | frozenset[int]],
) -> None:
    ledger = Ledger(5)
    for event in events:
        tell(ledger, event)
        verdicts = [ledger.verdict(index) for index in range(5)]
        assert ledger.n_complete == verdicts.count(Verdict.COMPLETE)
        assert ledger.n_failed == verdicts.count(Verdict.FAILED)
        failed = {index for index, verdict in enumerate(verdicts) if verdict is Verdict.FAILED}
        assert set(ledger.failed()) == failed
        assert ledger.n_finished == 5 - verdicts.count(None)
        assert ledger.is_finished == (None not in verdicts)


def test_the_counts_are_kept_and_not_recounted_when_somebody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = fed(3, (0, 0, "failed"), (1, 0, "complete"), (2, 0, "failed"))

    def refuse(self: Ledger, task: int) -> Verdict | None:
        pytest.fail(f"somebody looked at task {task}")

    monkeypatch.setattr(Ledger, "verdict", refuse)
    assert (ledger.n_complete, ledger.n_failed, ledger.n_finished) == (1, 2, 3)
    assert ledger.is_finished


@pytest.mark.parametrize(
    ("states", "is_live", "expected"),
    [
        ("cc", True, "complete"),
        ("cc", False, "complete"),
        ("cf", True, "failed"),
        ("ff", False, "failed"),
        ("c-", True, "running"),
        ("f-", False, "stopped"),
        ("--", True, "running"),
        ("--", False, "stopped"),
        ("", False, "complete"),
    ],
)
def test_a_run_is_what_its_tasks_are_and_else_running_or_stopped(
    states: str, is_live: bool, expected: str
) -> None:
    names = {"c": "complete", "f": "failed", "-": "started"}
    ledger = fed(len(states), *((task, 0, names[state]) for task, state in enumerate(states)))
    assert run_state(ledger, is_live) == expected


def test_each_state_of_a_task_as_it_stands_on_disk(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 10)
    first = begin(layout, A0)
    second = begin(layout, B0)
    take(layout, A0, 4)
    take(layout, B0, 6)
    take(layout, A0, 8)
    finish(first, 0)
    finish(first, 1, 5, state="failed")
    finish(second, 5)
    finish(second, 4, state="failed")
    error = Error(kind="lost", type="WorkerLost", message="")
    failures = [TaskFailure(task=2, error=error)]
    closing = Closing(attempt=A0, state="failed", reason="crash", by="p", failures=failures)
    assert publish_orphans(layout, closing, [task(3)])
    view = view_of(layout)
    assert verdicts(view) == "cff-fc----"
    assert view.unclaimed == 3, "the orphan 3 and the tasks 8 and 9"
    assert indices(stranded_tasks(view)) == [6, 7], (
        "claimed by a closed attempt, and in no orphans manifest"
    )
    again = [task(1, round=1), task(2, round=1), task(5, round=1)]
    assert publish_manifest(layout, "retry-01", again)
    assert verdicts(view.refresh()) == "c---fc----"


def test_each_state_of_an_attempt_as_it_stands_on_disk(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 4)
    begin(layout, A0)
    view = view_of(layout)
    assert (view.open_attempts, view.closed) == ([A0], {})
    closing = close(view, A0, death=Told())
    assert (view.open_attempts, view.closed) == ([], {A0: closing})
    assert closing.state == "stopped"
    assert layout.status("stopped", A0).exists()
