"""What the loop knows when it decides: taken from spools made by hand."""

import errno
import os
from pathlib import Path

import pytest
from spooling import (
    A0,
    A1,
    B0,
    JOB,
    begin,
    dead_process,
    elsewhere,
    finish,
    intend,
    make_spool,
    take,
    task,
    view_of,
)

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.decide import Policy
from gpuspool.orchestrator.supervise.history import History
from gpuspool.orchestrator.supervise.launch import Orders
from gpuspool.orchestrator.supervise.rulings import Judge
from gpuspool.orchestrator.supervise.snapshot import Situation
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.spool import closing
from gpuspool.spool.closing import publish_closing
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import JournalWriter, start_journal
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.manifest import publish_added, publish_orphans
from gpuspool.spool.publish import SyncError
from gpuspool.spool.records import Added, Closing, Error, JournalLine, Options
from gpuspool.spool.states import (
    BY_PARENT,
    BY_RESUME,
    AttemptState,
    ErrorKind,
    Life,
    LineState,
    Reason,
)
from gpuspool.spool.view import View

SLOTS = [Slot(0, "GPU-a"), Slot(1, "GPU-b")]


def workers_of(view: View, epoch: int) -> Workers:
    return Workers(view, Orders(epoch=epoch, job=JOB, options=Options(), world_size=2))


def situation_of(view: View, epoch: int = 0) -> Situation:
    judge, policy = Judge(view, epoch, max_crashes=2), Policy(max_restarts=3)
    return Situation(view, workers_of(view, epoch), judge, policy, epoch, SLOTS)


def close(layout: Layout, attempt: str, by: str = BY_PARENT) -> None:
    word = Closing(attempt=attempt, state=AttemptState.FAILED, reason=Reason.CRASH, by=by)
    assert publish_closing(layout, word, [])


def test_an_unreadable_task_counts_as_left_while_anybody_is_open_and_then_as_failed(
    tmp_path: Path,
) -> None:
    """Who is open may have read the line before it was damaged, and complete the task yet."""
    layout = make_spool(tmp_path / "s", 2)
    intend(layout, A0)
    journal = begin(layout, A0)
    take(layout, A0, 2)
    finish(journal, 0)
    manifest = layout.manifest("rank-0000")
    manifest.write_bytes(manifest.read_bytes().replace(b'"t1"', b'"t?"'))
    view = view_of(layout)
    situation = situation_of(view)
    assert view.ledger.unreadable == {1}
    snapshot = situation.snapshot(None)
    assert (snapshot.tasks_left, snapshot.failed) == (1, 0)
    close(layout, A0)
    view.refresh()
    snapshot = situation.snapshot(None)
    assert (snapshot.tasks_left, snapshot.failed) == (0, 1)


def test_an_unreadable_task_that_completes_after_all_has_not_failed(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    intend(layout, A0)
    journal = begin(layout, A0)
    manifest = layout.manifest("rank-0000")
    manifest.write_bytes(manifest.read_bytes().replace(b'"t1"', b'"t?"'))
    view = view_of(layout)
    situation = situation_of(view)
    finish(journal, 0, 1)
    view.refresh()
    snapshot = situation.snapshot(None)
    assert (snapshot.tasks_left, snapshot.failed) == (0, 0)


def test_who_works_on_tasks_that_came_after_the_end_gets_a_farewell_of_its_own(
    tmp_path: Path,
) -> None:
    layout = make_spool(tmp_path / "s", 2)
    intend(layout, A0)
    journal = begin(layout, A0)
    view = view_of(layout)
    situation = situation_of(view)
    finish(journal, 0, 1)
    view.refresh()
    situation.note_said_finished(100.0)
    assert situation.snapshot(None).finished_at == 100.0
    assert publish_added(layout, "added-01", Added(first=2, tasks=1, cost=1), [task(2)])
    view.refresh()
    situation.snapshot(None)
    finish(journal, 2)
    view.refresh()
    snapshot = situation.snapshot(None)
    assert (snapshot.tasks_left, snapshot.finished_at) == (0, None)


def test_claims_are_to_be_mended_in_each_epoch_but_the_first(tmp_path: Path) -> None:
    view = view_of(make_spool(tmp_path / "s", 2))
    assert not situation_of(view, epoch=0).snapshot(None).is_mending_due
    later = situation_of(view, epoch=1)
    assert later.snapshot(None).is_mending_due
    later.note_mending()
    assert not later.snapshot(None).is_mending_due


def test_claims_are_to_be_mended_again_after_a_death_that_nobody_saw(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    view = view_of(layout)
    situation = situation_of(view, epoch=1)
    situation.snapshot(None)
    situation.note_mending()
    for by, attempt, is_due in ((BY_PARENT, A0, False), (A1, A1, False), (BY_RESUME, B0, True)):
        close(layout, attempt, by)
        view.refresh()
        assert situation.snapshot(None).is_mending_due is is_due, by


def test_only_this_epochs_attempts_make_a_ranks_past(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 4)
    view = view_of(layout)
    history = History(view, 1, SLOTS)
    intend(layout, A0, epoch=0)
    intend(layout, A1, epoch=1)
    intend(layout, B0, epoch=1)
    intend(layout, attempt_name(7, 0), epoch=1)
    finish(begin(layout, A0), 0)
    finish(begin(layout, A1), 1, 2)
    finish(begin(layout, B0), 3)
    for attempt in (A0, A1, attempt_name(7, 0)):
        close(layout, attempt)
    view.refresh()
    first, second = history.past()
    assert [trial.completed for trial in first.trials] == [2], "those of A1 alone"
    assert (first.reasons, first.slot) == ({Reason.CRASH}, SLOTS[0])
    assert first.has_completed
    assert first.ended_at > 0
    assert (second.trials, second.has_completed, second.ended_at) == ((), True, 0.0)
    again = history.past()[0]
    assert again.ended_at == first.ended_at, "when an end was first seen is kept"


def test_the_slots_of_a_parent_that_has_gone_are_in_play_while_it_has_left_an_attempt(
    tmp_path: Path,
) -> None:
    layout = make_spool(tmp_path / "s", 4)
    view = view_of(layout)
    history = History(view, 0, SLOTS)
    intend(layout, A0, epoch=0)
    intend(layout, B0, epoch=1, parent=elsewhere())
    finish(begin(layout, B0), 1)
    view.refresh()
    history.past()
    assert len(history.past_elsewhere([])) == 1
    close(layout, B0)
    view.refresh()
    assert history.past_elsewhere([]) == []
    [past] = history.past_elsewhere([1])
    assert past.slot.host == "elsewhere"


def test_a_task_that_failed_here_waits_for_another_host_only_while_somebody_is_there(
    tmp_path: Path,
) -> None:
    """It failed in two processes that proved themselves. Another host may know better."""
    layout = make_spool(tmp_path / "s", 8)
    intend(layout, B0, epoch=1, parent=elsewhere())
    take(layout, B0, 1)
    finish(begin(layout, B0), 7)
    close(layout, B0)
    for attempt, index in ((A0, 1), (A1, 2)):
        intend(layout, attempt)
        fail(begin(layout, attempt), 0, then_complete=index)
        close(layout, attempt)
    take(layout, A0, 4)
    take(layout, A1, 8)
    view = view_of(layout)
    judge, slot = Judge(view, 0, max_crashes=2), Slot(0, "0", host=myself().host)
    situation = Situation(view, workers_of(view, 0), judge, Policy(max_restarts=3), 0, [slot])
    situation.snapshot(None, others=[1])
    assert judge.publish() == [], "it is given out again"
    situation.snapshot(None, others=[])
    assert [failure.task for failure in judge.publish()] == [0]


def fail(journal: JournalWriter, index: int, then_complete: int) -> None:
    """A task fails, and then the place proves itself."""
    error = Error(kind=ErrorKind.EXCEPTION, type="ValueError", message="no")
    line = task(index)
    journal.append(JournalLine(task=index, round=0, state=LineState.HELD, error=error, line=line))
    finish(journal, then_complete)
    journal.flush()


def test_a_rank_gets_on_while_its_open_attempt_completes_tasks(tmp_path: Path) -> None:
    """Also where all its attempts before failed: the outage that they met is over."""
    layout = make_spool(tmp_path / "s", 4)
    intend(layout, A0)
    begin(layout, A0)
    close(layout, A0)
    intend(layout, A1)
    journal = begin(layout, A1)
    view = view_of(layout)
    history = History(view, 0, SLOTS)
    assert [past.gets_on for past in history.past()] == [False, False]
    finish(journal, 0)
    view.refresh()
    assert [past.gets_on for past in history.past()] == [True, False]
    error = Error(kind=ErrorKind.EXCEPTION, type="ValueError", message="no")
    held = JournalLine(task=1, round=0, state=LineState.HELD, error=error, line=task(1))
    journal.append(held)
    journal.flush()
    view.refresh()
    assert [past.gets_on for past in history.past()] == [False, False]
    close(layout, A1)
    view.refresh()
    assert [past.gets_on for past in history.past()] == [False, False]


def test_many_dead_of_an_earlier_epoch_are_closed_in_one_pass(tmp_path: Path) -> None:
    """However many they are, the spool is read as often as for one."""
    count = 60
    layout = make_spool(tmp_path / "s", count)
    gone = dead_process()
    attempts = [attempt_name(rank, 0) for rank in range(count)]
    for number, attempt in enumerate(attempts):
        intend(layout, attempt, parent=gone)
        assert start_journal(layout, attempt, gone) is not None
        take(layout, attempt, number + 1)
    view = CountingView(layout, view_of(layout).run)
    view.refresh()
    workers = workers_of(view, 1)
    assert {workers.life(attempt) for attempt in attempts} == {Life.DEAD}
    before = view.refreshes
    ended = list(workers.close(attempts))
    assert view.refreshes - before <= 2
    assert [one.closing.attempt for one in ended] == attempts
    assert {(one.closing.by, one.closing.reason) for one in ended} == {(BY_RESUME, Reason.LOST)}
    assert {one.how for one in ended} == {"its parent died, and then it died itself"}
    assert view.open_attempts == []
    assert view.unclaimed == count, "what they held is given out again"


class CountingView(View):
    """A view that counts how often it reads the spool."""

    refreshes = 0

    def refresh(self) -> View:
        self.refreshes += 1
        return super().refresh()


def test_an_attempt_that_closed_itself_before_it_was_closed_is_not_told_of(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    gone = dead_process()
    intend(layout, A0, parent=gone)
    assert start_journal(layout, A0, gone) is not None
    view = view_of(layout)
    workers = workers_of(view, 1)
    own = Closing(attempt=A0, state=AttemptState.STOPPED, reason=Reason.DRAINED, by=A0)
    assert publish_orphans(layout, own, [])
    assert list(workers.close([A0])) == []
    assert view.closed[A0].by == A0


def test_an_attempt_that_cannot_be_closed_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is closed is told of; then the trouble is raised, and the next try closes the rest."""
    layout = make_spool(tmp_path / "s", 2)
    gone = dead_process()
    for number, attempt in enumerate((A0, B0)):
        intend(layout, attempt, parent=gone)
        assert start_journal(layout, attempt, gone) is not None
        take(layout, attempt, number + 1)
    workers = workers_of(view_of(layout), 1)
    real_sync = closing.fsync_file

    def broken(path: Path) -> None:
        if A0 in path.name:
            raise SyncError(errno.EIO, os.strerror(errno.EIO), str(path))
        real_sync(path)

    monkeypatch.setattr(closing, "fsync_file", broken)
    told = workers.close([A0, B0])
    assert next(told).closing.attempt == B0
    with pytest.raises(SyncError):
        next(told)
    monkeypatch.setattr(closing, "fsync_file", real_sync)
    assert [ended.closing.attempt for ended in workers.close([A0])] == [A0]
