"""Blame: what a death does to the tasks that were in hand. No innocent task ever fails."""

import json
from pathlib import Path

from spooling import (
    A0,
    begin,
    close,
    finish,
    make_spool,
    orphans_left,
    take,
    task,
    verdicts,
    view_of,
)

from gpuspool.spool.death import MAX_KILLS, Witness
from gpuspool.spool.records import Closing, JournalLine, TaskLine
from gpuspool.spool.view import View

SEGV = Witness(-11, max_crashes=2)
KILL = Witness(-9, max_crashes=2)


def crash(
    root: Path, left: list[TaskLine], witness: Witness | None, started: int | None = None
) -> tuple[Closing, list[TaskLine], View]:
    """An attempt claims these tasks, finishes none of them and dies.

    started: the task that its last `started` line names. Returns its closing, its orphans and the
    view after it.
    """
    layout = make_spool(root / "s", left)
    writer = begin(layout, A0)
    take(layout, A0, len(left))
    if started is not None:
        writer.append(JournalLine(task=started, round=0, state="started", start=1.0))
    view = view_of(layout)
    closing = close(view, A0, witness=witness)
    return closing, orphans_left(layout, A0), view


def test_a_crash_with_one_task_in_hand_is_held_against_it(tmp_path: Path) -> None:
    closing, left, view = crash(tmp_path, [task(0, careful=True)], SEGV, started=0)
    assert left == [], "it is held back until the orchestrator rules"
    assert (closing.failures, closing.suspects, closing.exit_code) == ([], 1, -11)
    [opinion] = closing.held
    assert (opinion.task, opinion.line) == (0, task(0, careful=True))
    assert view.unruled() == [(0, 0)]
    assert verdicts(view) == "-"


def test_where_one_crash_is_enough_the_task_alone_in_hand_fails(tmp_path: Path) -> None:
    once = Witness(-11, max_crashes=1)
    closing, left, view = crash(tmp_path, [task(0, careful=True)], once, started=0)
    assert left == []
    [failure] = closing.failures
    error = failure.error
    assert (failure.task, error.kind, error.type) == (0, "lost", "WorkerLost")
    assert error.exit_code == -11
    assert "the worker died with this task in hand: killed by SIGSEGV" in error.message
    assert "SIGSEGV" in error.message
    assert A0 in error.message
    assert verdicts(view) == "f"
    assert json.loads(view.layout.failed_task("t0").read_bytes())["error"]["type"] == "WorkerLost"


def test_a_crash_with_a_batch_in_hand_makes_all_careful_and_counts_against_none(
    tmp_path: Path,
) -> None:
    closing, left, view = crash(tmp_path, [task(0), task(1), task(2)], SEGV)
    assert left == [task(index, careful=True) for index in range(3)]
    assert (closing.failures, closing.held, closing.suspects) == ([], [], 3)
    assert verdicts(view) == "---"


def test_a_crash_counts_against_the_started_task_alone(tmp_path: Path) -> None:
    tasks = [task(index, careful=True) for index in range(4)]
    closing, left, view = crash(tmp_path, tasks, SEGV, started=2)
    assert left == [tasks[0], tasks[1], tasks[3]]
    assert [opinion.task for opinion in closing.held] == [2]
    assert closing.suspects == 1
    assert verdicts(view) == "----"


def test_a_crash_between_careful_tasks_has_no_suspect(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", [task(index, careful=True) for index in range(3)])
    writer = begin(layout, A0)
    take(layout, A0, 3)
    writer.append(JournalLine(task=0, round=0, state="started"))
    finish(writer, 0)
    closing = close(view_of(layout), A0, witness=SEGV)
    assert (closing.suspects, closing.failures) == (0, [])
    assert orphans_left(layout, A0) == [task(1, careful=True), task(2, careful=True)]


def test_a_first_crash_fails_nobody_whatever_was_left(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", [task(0, careful=True), task(1)])
    writer = begin(layout, A0)
    take(layout, A0, 2)
    writer.append(JournalLine(task=0, round=0, state="started"))
    finish(writer, 0)
    closing = close(view_of(layout), A0, witness=SEGV)
    assert (closing.failures, closing.suspects) == ([], 1)
    assert [opinion.task for opinion in closing.held] == [1]
    assert orphans_left(layout, A0) == []


def test_sigkills_are_counted_and_believed_at_last(tmp_path: Path) -> None:
    for kills in range(MAX_KILLS - 1):
        closing, left, _ = crash(tmp_path / f"{kills}", [task(0, kills=kills)], KILL, started=0)
        assert left == [task(0, kills=kills + 1, careful=True)]
        assert (closing.failures, closing.held, closing.killed) == ([], [], 0)
    closing, left, _ = crash(tmp_path / "last", [task(0, kills=MAX_KILLS - 1)], KILL, started=0)
    assert left == []
    assert "SIGKILL" in closing.failures[0].error.message
    closing, left, _ = crash(tmp_path / "segv", [task(0, kills=MAX_KILLS - 1)], SEGV, started=0)
    assert (left, closing.failures) == ([], [])
    assert [opinion.task for opinion in closing.held] == [0]


def test_without_a_witness_nobody_is_blamed(tmp_path: Path) -> None:
    tasks = [task(0, kills=4, careful=True, failed_in=((A0, "cpu"),))]
    closing, left, _ = crash(tmp_path, tasks, None, started=0)
    assert left == tasks
    assert (closing.failures, closing.suspects, closing.exit_code) == ([], 0, None)


def test_a_limit_that_was_lowered_fails_no_task_that_was_not_in_hand(tmp_path: Path) -> None:
    tasks = [task(index, careful=True) for index in range(3)]
    closing, left, _ = crash(tmp_path, tasks, Witness(-11, max_crashes=1), started=2)
    assert [failure.task for failure in closing.failures] == [2]
    assert left == tasks[:2]
