"""What `status` tells of spools made by hand: times, what is in hand, what matters of each rank."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import wait_until
from spooling import (
    A0,
    A1,
    B0,
    C0,
    admit,
    begin,
    close_dead,
    dead_process,
    elsewhere,
    finish,
    intend,
    make_spool,
    say_ended,
    take,
    task,
    view_of,
    watch_opens,
)

from gpuspool.orchestrator.api import reading
from gpuspool.orchestrator.report import parents
from gpuspool.orchestrator.report.outlook import Prospect
from gpuspool.orchestrator.report.status import status
from gpuspool.orchestrator.report.table import table_lines
from gpuspool.orchestrator.text.forecast import Outlook
from gpuspool.spool.codec import pretty, seal, seal_pretty
from gpuspool.spool.identity import identity_of, is_stopped, myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, epoch_name
from gpuspool.spool.manifest import publish_orphans
from gpuspool.spool.parents import being_parent
from gpuspool.spool.publish import publish, replace
from gpuspool.spool.records import (
    Closing,
    Error,
    Heartbeat,
    Identity,
    JournalLine,
    Options,
    ParentEnd,
    TaskFailure,
)
from gpuspool.spool.states import AttemptState, Ending, ErrorKind, LineState, Phase, Reason
from gpuspool.spool.view import View, open_view


def beat(layout: Layout, attempt: str, who: Identity | None = None, **more: Any) -> None:
    """The attempt tells what it is at: that it runs nothing, unless `more` says more."""
    fields: dict[str, Any] = {
        "beat": 1, "parent": "1", "device": "", "state": Phase.RUNNING, "at": time.time()
    }  # fmt: skip
    heartbeat = Heartbeat(
        **msgspec.structs.asdict(who or myself()), attempt=attempt, **{**fields, **more}
    )
    replace(layout.heartbeat(attempt), seal(heartbeat))


def rows(now: dict[str, Any]) -> list[dict[str, Any]]:
    return list(now["ranks"])


def close_as(layout: Layout, attempt: str, reason: Reason, **more: Any) -> None:
    """The attempt ends, and for this reason."""
    state = AttemptState.FAILED
    if reason in (Reason.RECYCLED, Reason.DRAINED, Reason.HANDOVER):
        state = AttemptState.STOPPED
    if reason is Reason.FINISHED:
        state = AttemptState.COMPLETE
    closing = Closing(attempt=attempt, state=state, reason=reason, by=attempt, **more)
    assert publish_orphans(layout, closing, [])


# What is in hand.


def test_running_counts_the_tasks_of_a_call_and_not_ranks(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 100)
    for attempt, in_hand in ((A0, 32), (B0, 0)):
        intend(layout, attempt)
        begin(layout, attempt)
        beat(layout, attempt, task=5, task_since=time.time() - 30, in_hand=in_hand)
    now = status(view_of(layout))
    assert [row["in_hand"] for row in rows(now)] == [32, 1], "an older version tells no number"
    assert (now["tasks"]["running"], now["tasks"]["waiting"]) == (33, 67)
    assert "t5 +31" in table_lines(now)[3]


def test_no_more_run_than_are_left(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 3)
    intend(layout, A0)
    finish(begin(layout, A0), 0, 1)
    beat(layout, A0, task=1, task_since=time.time(), in_hand=10**9)
    tasks = status(view_of(layout))["tasks"]
    assert (tasks["running"], tasks["waiting"]) == (1, 0)


def test_a_task_that_hangs_shows_for_how_long_and_one_that_is_done_does_not(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0)
    writer = begin(layout, A0)
    beat(layout, A0, task=3, task_since=time.time() - 3725, in_hand=1)
    [row] = rows(status(view_of(layout)))
    assert 3725 <= row["task_s"] < 3800
    assert "  1:02:" in table_lines(status(view_of(layout)))[3]
    finish(writer, 3)
    [row] = rows(status(view_of(layout)))
    assert (row["task"], row["task_s"]) == (3, None)


def test_the_key_is_that_of_the_heartbeat_else_the_manifests_else_a_number(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    for attempt, index, key in ((A0, 1, "told"), (B0, 2, ""), (C0, 80, "")):
        intend(layout, attempt)
        begin(layout, attempt)
        beat(layout, attempt, task=index, task_since=time.time(), key=key)
    now = status(view_of(layout))
    assert [row["key"] for row in rows(now)] == ["told", "t2", None]
    assert table_lines(now)[5].endswith("  #80")


def test_keys_that_heartbeats_tell_are_looked_up_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0)
    begin(layout, A0)
    beat(layout, A0, task=1, task_since=time.time(), key="t1")
    view = view_of(layout)
    monkeypatch.setattr(view, "manifests", {})
    assert rows(status(view))[0]["key"] == "t1"


# Notes.


@pytest.mark.parametrize(
    ("since_s", "note"), [(5, ""), (50, "time-out in"), (70, "time-out now")], ids=str
)
def test_a_limit_of_time_is_told_of_when_it_is_near(
    since_s: float, note: str, tmp_path: Path
) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0, options=Options(task_timeout_s=30.0))
    begin(layout, A0)
    beat(layout, A0, task=1, task_since=time.time() - since_s, in_hand=2)
    [row] = rows(status(view_of(layout)))
    assert row["note"].startswith(note)
    assert bool(row["note"]) is bool(note)
    assert (row["trouble"] > 0) is bool(note)


def test_no_limit_holds_while_outputs_are_published(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0, options=Options(task_timeout_s=30.0))
    begin(layout, A0)
    beat(layout, A0, task=1, task_since=time.time() - 99, state=Phase.PUBLISHING)
    assert rows(status(view_of(layout)))[0]["note"] == ""


def restarted(tmp_path: Path, *closings: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The status of a run with a live parent whose rank 0 has had attempts that ended so."""
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, myself())
    for number, more in enumerate(closings):
        attempt = f"rank-0000.a{number:02d}"
        intend(layout, attempt, options=Options(**options))
        begin(layout, attempt)
        close_as(layout, attempt, **more)
    with being_parent(layout, 0):
        return status(view_of(layout))


CRASH = {"reason": Reason.CRASH, "exit_code": 3}


@pytest.mark.parametrize(
    ("closings", "state", "note"),
    [
        ([CRASH], "restarting", "1 restart: crash"),
        ([{**CRASH, "exit_code": -11}], "restarting", "1 restart: crash, SIGSEGV"),
        ([CRASH, {"reason": Reason.LOAD}], "restarting", "2 restarts: the job does not load"),
        ([CRASH] * 4, "failed", "gave up: 4 crashes in a row"),
        ([{"reason": Reason.DEVICE}] * 4, "failed", "gave up: 4 times in a row, does not see"),
        ([{"reason": Reason.RECYCLED}], "restarting", "fresh process"),
        ([{"reason": Reason.DRAINED}], "stopped", "drained"),
        ([{"reason": Reason.HANDOVER}], "stopped", "only doubtful tasks left"),
        ([{"reason": Reason.FINISHED}], "complete", ""),
    ],
    ids=str,
)
def test_a_rank_whose_process_ended_is_told_with_what_comes_next(
    closings: list[dict[str, Any]], state: str, note: str, tmp_path: Path
) -> None:
    [row] = rows(restarted(tmp_path, *closings))
    assert row["state"] == state
    assert row["note"].startswith(note)
    assert bool(row["note"]) is bool(note)


def test_what_ran_out_of_memory_is_told_so(tmp_path: Path) -> None:
    error = Error(kind=ErrorKind.HOST_OOM, type="WorkerLost", message="killed")
    held = [TaskFailure(task=1, key="t1", error=error, line=task(1))]
    killed = {"reason": Reason.CRASH, "exit_code": -9, "held": held}
    [row] = rows(restarted(tmp_path, *[killed] * 5))
    assert (row["state"], row["note"]) == ("restarting", "5 restarts: out of memory")


def test_a_rank_restarts_only_while_its_parent_is_at_work(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, dead_process())
    intend(layout, A0, parent=dead_process())
    begin(layout, A0)
    close_as(layout, A0, **CRASH)
    [row] = rows(status(view_of(layout)))
    assert (row["state"], row["note"]) == ("failed", "crash")


def test_a_rank_gets_no_other_process_while_all_that_is_left_is_in_hand(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, myself())
    intend(layout, A0)
    finish(begin(layout, A0), *range(7))
    close_as(layout, A0, Reason.RECYCLED)
    intend(layout, B0)
    writer = begin(layout, B0)
    for n_left, state in ((2, "restarting"), (1, "waiting")):
        beat(layout, B0, task=8, task_since=time.time(), in_hand=1)
        with being_parent(layout, 0):
            row = rows(status(view_of(layout)))[0]
        assert (n_left, row["state"]) == (n_left, state)
        assert row["note"] == "fresh process"
        finish(writer, 7)


def test_a_rank_waits_while_all_that_is_left_is_in_hand_or_in_doubt(tmp_path: Path) -> None:
    """A task in doubt that is tried now is both, and counts once."""
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, myself())
    intend(layout, A0)
    writer = begin(layout, A0)
    finish(writer, *range(5))
    error = Error(kind=ErrorKind.EXCEPTION, type="ValueError", message="bad")
    for index in (5, 6):
        writer.append(
            JournalLine(
                task=index,
                round=0,
                state=LineState.HELD,
                start=1.7e9,
                error=error,
                line=task(index),
            )
        )
    close_as(layout, A0, **CRASH)
    intend(layout, B0)
    writer = begin(layout, B0)
    for in_hand, n_done, state in ((5, 0, "restarting"), (8, 0, "restarting"), (8, 1, "waiting")):
        finish(writer, *range(7, 7 + n_done))
        beat(layout, B0, task=in_hand, task_since=time.time(), in_hand=1)
        with being_parent(layout, 0):
            row = rows(status(view_of(layout)))[0]
        assert row["state"] == state
    assert row["note"] == "waits: 2 tasks in doubt"


def test_restarts_of_an_earlier_start_are_not_told(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0, epoch=0)
    begin(layout, A0)
    close_as(layout, A0, **CRASH)
    intend(layout, A1, epoch=1)
    begin(layout, A1)
    beat(layout, A1)
    [row] = rows(status(view_of(layout)))
    assert (row["restarts"], row["note"]) == (0, "")


def test_who_waits_for_a_warm_up_is_told_for_whom(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    for attempt, state in ((A0, Phase.MAKING), (B0, Phase.WAITING)):
        intend(layout, attempt)
        begin(layout, attempt)
        beat(layout, attempt, state=state)
    assert [row["note"] for row in rows(status(view_of(layout)))] == ["", "waits for rank 0"]


def test_ranks_that_wait_for_the_first_one_to_import_the_job_are_told(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    parent = admit(layout, 0, myself())
    layout.parent(0).unlink()
    more = msgspec.structs.replace(parent, slots=[parent.slots[0]] * 8)
    assert publish(layout.parent(0), seal_pretty(more))
    intend(layout, A0)
    begin(layout, A0)
    beat(layout, A0, state=Phase.LOADING)
    with being_parent(layout, 0):
        now = status(view_of(layout))
        assert now["parents"][0]["slots_waiting"] == 7
        text = "\n".join(table_lines(now))
        assert "7 more ranks wait for rank 0, which imports the job first" in text
        beat(layout, A0)
        assert status(view_of(layout))["parents"][0]["slots_waiting"] == 0


# Silence.


def touch_beat(layout: Layout, name: str, age_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody beat last so long ago, as the file system tells."""
    (layout.beats / f"{name}.1").touch()
    ages = _AGES.setdefault(str(layout.root), {})
    ages[name] = age_s
    monkeypatch.setattr(
        parents, "beaten_at", lambda layout, name, _: time.time() - ages.get(name, 0.0)
    )


_AGES: dict[str, dict[str, float]] = {}


@pytest.mark.parametrize(
    ("parent_s", "own_s", "state"),
    [(8, 80, "running"), (25, 62, "running"), (35, 25, "running"), (35, 42, "silent")],
)
def test_ranks_of_a_crashed_host_are_said_to_be_silent_as_soon_as_its_parent_is(
    parent_s: float, own_s: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease is 120 s, so the parent beats each 10 s, and its worker each 30 s."""
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, elsewhere())
    intend(layout, A0, parent=elsewhere())
    assert start_journal(layout, A0, elsewhere(1)) is not None
    beat(layout, A0, elsewhere(1), task=1, task_since=time.time())
    touch_beat(layout, epoch_name(0), parent_s, monkeypatch)
    touch_beat(layout, A0, own_s, monkeypatch)
    now = status(view_of(layout))
    [row] = rows(now)
    assert row["state"] == state
    if state == "silent":
        assert row["note"].startswith("silent 4")
        assert now["state"] == "silent"
        assert now["says"].startswith("silent for 0:3")
        assert now["next"].startswith("gpuspool wait ")
        assert "silent 35 s" in "\n".join(table_lines(now))


# Who stands still.


@contextlib.contextmanager
def stopped_process() -> Iterator[Identity]:
    """A process of this host that was stopped, as by Ctrl-Z."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(process.pid))
        who = identity_of(process.pid)
        assert who is not None
        yield who
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("age_s", "note"), [(5, ""), (46, "told nothing for 46 s")])
def test_a_worker_that_does_not_tell_what_it_is_at_is_noted(
    age_s: float, note: str, tmp_path: Path
) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0)
    begin(layout, A0)
    beat(layout, A0, task=1, task_since=time.time() - 50, in_hand=1, at=time.time() - age_s)
    [row] = rows(status(view_of(layout)))
    assert (row["note"], row["trouble"] > 0) == (note, bool(note))


def test_a_worker_that_is_stopped_is_told_so(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0)
    with stopped_process() as who:
        assert start_journal(layout, A0, who) is not None
        beat(layout, A0, who, task=1, task_since=time.time() - 50, at=time.time() - 46)
        [row] = rows(status(view_of(layout)))
    assert (row["note"], row["trouble"]) == ("its process is stopped", 2)


def test_a_command_that_is_stopped_is_told_with_what_wakes_it(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    with stopped_process() as who:
        admit(layout, 0, who)
        intend(layout, A0, parent=who)
        begin(layout, A0)
        beat(layout, A0)
        now = status(view_of(layout))
        assert [row["is_stopped"] for row in now["parents"]] == [True]
        assert f"`kill -CONT {who.pid}` wakes it" in " ".join(table_lines(now, 300))
        os.kill(who.pid, signal.SIGCONT)
        wait_until(lambda: not is_stopped(who.pid))
        now = status(view_of(layout))
        assert [row["is_stopped"] for row in now["parents"]] == [False]
        assert "kill -CONT" not in " ".join(table_lines(now, 300))


def test_workers_whose_parent_is_gone_drain_and_nobody_ends_one_that_hangs(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    gone = dead_process()
    admit(layout, 0, gone)
    for attempt in (A0, B0):
        intend(layout, attempt, parent=gone)
    begin(layout, A0)
    beat(layout, A0, task=1, task_since=time.time())
    assert start_journal(layout, B0, dead_process()) is not None
    now = status(view_of(layout))
    assert (now["says"], now["is_draining"]) == ("running", False)
    assert "`gpuspool drain` stops it" in " ".join(table_lines(now, 300))
    assert [row["note"] for row in rows(now)] == ["", "its process is gone"]
    (layout.control / "drain.0000").touch()
    now = status(view_of(layout), outlook=lambda _: Outlook(1.0, 14.0))
    assert (now["says"], now["is_draining"], now["left_s"]) == ("draining", True, None)
    text = " ".join(table_lines(now, 300))
    assert "`gpuspool drain`" not in text
    assert "nobody but the run's own command ends one that hangs" in text
    assert now["next"].startswith("gpuspool resume ")


def test_a_run_that_was_killed_has_no_note_for_each_rank(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, dead_process())
    intend(layout, A0, parent=dead_process())
    assert start_journal(layout, A0, dead_process()) is not None
    [row] = rows(status(view_of(layout)))
    assert (row["state"], row["note"]) == ("lost", "")


@pytest.mark.parametrize(
    ("for_s", "in_hand", "options", "note"),
    [
        (173, 1, {}, "43 times any other task"),
        (173, 8, {}, ""),
        (25, 1, {}, ""),
        (173, 1, {"task_timeout_s": 3600.0}, ""),
    ],
    ids=str,
)
def test_a_task_that_takes_much_longer_than_all_others_is_noted(
    for_s: float, in_hand: int, options: dict[str, Any], note: str, tmp_path: Path
) -> None:
    layout = make_spool(tmp_path / "s", 20)
    admit(layout, 0, myself())
    intend(layout, A0, options=Options(**options))
    writer = begin(layout, A0)
    for number, seconds in enumerate((0.05, 1.0, 4.0, 0.1, 0.1)):
        writer.append(
            JournalLine(
                task=number,
                round=0,
                state=LineState.COMPLETE,
                start=time.time() - 200 + 5 * number,
                seconds=seconds,
            )
        )
    beat(layout, A0, task=5, task_since=time.time() - for_s, in_hand=in_hand)
    with being_parent(layout, 0):
        now = next(reading.follow_status(layout.root))
    [row] = rows(now)
    assert (row["note"], row["trouble"] > 0) == (note, bool(note))
    assert row["times_longest"] == (43 if note else None)
    assert now["next"].startswith("gpuspool explain " if note else "gpuspool status --watch ")


@pytest.mark.parametrize(("n_held", "left_s"), [(1, 14.0), (5, None)])
def test_no_time_is_left_where_most_that_is_left_is_in_doubt(
    n_held: int, left_s: float | None, tmp_path: Path
) -> None:
    layout = make_spool(tmp_path / "s", 9)
    admit(layout, 0, myself())
    intend(layout, A0)
    writer = begin(layout, A0)
    error = Error(kind=ErrorKind.EXCEPTION, type="ValueError", message="bad")
    for number in range(n_held):
        writer.append(
            JournalLine(
                task=number,
                round=0,
                state=LineState.HELD,
                start=time.time() - 5,
                seconds=1.0,
                error=error,
                line=task(number),
            )
        )
    with being_parent(layout, 0):
        now = status(view_of(layout), outlook=lambda _: Outlook(1.0, 14.0))
    assert (now["left_s"], now["tasks_per_s"]) == (left_s, 1.0)


def test_a_process_that_is_doubted_hides_no_restarts(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    intend(layout, A0)
    begin(layout, A0)
    close_as(layout, A0, **CRASH)
    intent = intend(layout, A1)
    replace(layout.intent(A1), seal_pretty(msgspec.structs.replace(intent, is_doubted=True)))
    begin(layout, A1)
    beat(layout, A1)
    [row] = rows(status(view_of(layout)))
    assert row["note"] == "doubted, 1 restart: crash"


# The head.


def test_a_finished_run_is_told_by_what_failed(tmp_path: Path) -> None:
    """20 of 20 tasks, ten of which failed, are all of them: no time is left."""
    layout = make_spool(tmp_path / "s", 20)
    admit(layout, 0, dead_process())
    intend(layout, A0, parent=dead_process())
    writer = begin(layout, A0)
    finish(writer, *range(10))
    finish(writer, *range(10, 20), state="failed")
    close_as(layout, A0, Reason.FINISHED)
    assert publish(
        layout.parent_end(0), pretty(ParentEnd(how=Ending.FINISHED, exit_code=3, at=1700000252.0))
    )
    now = next(reading.follow_status(layout.root))
    assert (now["state"], now["says"]) == ("failed", "finished, 10 failed")
    assert now["elapsed_s"] == 252.0
    assert now["left_s"] is None
    assert now["next"] == f"gpuspool failed {layout.root}"
    assert table_lines(now)[0] == "job.py:work  finished, 10 failed  100 % in 4:12"


@pytest.mark.parametrize(
    ("how", "says", "command"),
    [
        ("drained", "stopped (drained)", "resume"),
        ("stopped", "stopped (drained by order)", "resume"),
        ("interrupted", "stopped (interrupted)", "resume"),
        ("too many failed", "stopped (too many failed)", "failed"),
        ("load", "stopped (the job does not load)", "logs"),
        ("broken", "stopped (nothing ever completed)", "logs"),
        ("lost", "stopped (its host was lost)", "resume"),
        ("failed", "stopped (an error)", "resume"),
        ("something new", "stopped", "resume"),
    ],
)
def test_a_run_that_stopped_is_told_with_the_reason_and_the_next_command(
    how: str, says: str, command: str, tmp_path: Path
) -> None:
    layout = make_spool(tmp_path / "s", 20)
    admit(layout, 0, dead_process())
    say_ended(layout, 0, how)
    now = status(view_of(layout), named="a b")
    assert now["says"] == says
    more = " --last 20" if command == "logs" else ""
    assert now["next"] == f"gpuspool {command} 'a b'{more}"


def test_where_tasks_only_failed_the_story_of_one_is_worth_reading(tmp_path: Path) -> None:
    """Failures do not stand in logs."""
    layout = make_spool(tmp_path / "s", 20)
    admit(layout, 0, dead_process())
    intend(layout, A0)
    error = Error(kind=ErrorKind.EXCEPTION, type="ValueError", message="bad")
    begin(layout, A0).append(
        JournalLine(task=7, round=0, state=LineState.HELD, error=error, line=task(7))
    )
    close_as(layout, A0, Reason.FAILURES)
    say_ended(layout, 0, "broken")
    assert status(view_of(layout), named="s")["next"] == "gpuspool explain s '#7'"


def test_what_a_run_said_at_its_end_is_not_told_once_it_is_not_so(tmp_path: Path) -> None:
    """It was finished; a task was added since."""
    layout = make_spool(tmp_path / "s", 20)
    admit(layout, 0, dead_process())
    end = ParentEnd(how=Ending.FINISHED, exit_code=0, at=1.0, message="19 of 19 tasks complete")
    assert publish(layout.parent_end(0), pretty(end))
    now = status(view_of(layout))
    assert now["message"] == "19 of 19 tasks complete"
    assert "19 of 19" not in "\n".join(table_lines(now))


def test_a_folder_in_the_place_of_an_intent_is_no_attempt(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 20)
    admit(layout, 0, dead_process())
    layout.intent(C0).mkdir()
    now = status(view_of(layout))
    assert (now["says"], now["ranks"]) == ("stopped (killed)", [])
    assert len(now["damage"]) == 1
    assert view_of(layout).next_number(2) == 1, "nobody can be started under its name"


def test_a_run_that_was_killed_and_one_that_never_began_are_told_apart(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 20)
    assert status(view_of(layout))["says"] == "not started"
    admit(layout, 0, dead_process())
    assert status(view_of(layout))["says"] == "stopped (killed)"


def test_a_run_is_draining_when_all_of_its_parents_are(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 20)
    admit(layout, 0, myself())
    with being_parent(layout, 0):
        assert status(view_of(layout))["says"] == "running"
        (layout.control / "leave.0000").touch()
        now = status(view_of(layout))
        assert (now["says"], now["state"]) == ("draining", "running")
        assert now["next"].startswith("gpuspool wait ")
        admit(layout, 1, elsewhere())
        now = status(view_of(layout))
        assert now["says"] == "running"
        assert [row["is_draining"] for row in now["parents"]] == [True, False]


def test_where_every_process_fails_to_load_the_logs_are_worth_reading(tmp_path: Path) -> None:
    now = restarted(tmp_path, {"reason": Reason.LOAD})
    assert now["next"].endswith(" --last 20")


def test_elapsed_counts_from_the_oldest_parent_at_work(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 20)
    admit(layout, 0, dead_process())
    say_ended(layout, 0)
    admit(layout, 1, myself())
    with being_parent(layout, 1):
        now = status(view_of(layout))
    assert now["began_at"] == 1700000000.0
    assert now["ended_at"] is None
    assert now["elapsed_s"] > 1e6


def test_of_a_run_that_was_killed_the_last_sign_of_life_is_its_end(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 20)
    gone = dead_process()
    admit(layout, 0, gone)
    intend(layout, A0, parent=gone)
    assert start_journal(layout, A0, gone) is not None
    beat(layout, A0, gone, at=1700000063.0)
    assert status(view_of(layout))["elapsed_s"] == 63.0
    assert close_dead(view_of(layout), A0, by="resume") is not None
    assert status(view_of(layout))["elapsed_s"] == 63.0, "not when it was found"


def test_a_killed_run_lasted_until_the_last_call_that_its_journals_tell(tmp_path: Path) -> None:
    """The heartbeat may be several seconds older. A call's time is shared by its tasks."""
    layout = make_spool(tmp_path / "s", 20)
    gone = dead_process()
    admit(layout, 0, gone)
    intend(layout, A0, parent=gone)
    writer = start_journal(layout, A0, gone)
    assert writer is not None
    beat(layout, A0, gone, at=1700000063.0)
    for index in (0, 1):
        line = JournalLine(
            task=index, round=0, state=LineState.COMPLETE, start=1700000060.0, seconds=4.5
        )
        writer.append(line)
    assert status(view_of(layout))["elapsed_s"] == 69.0
    assert close_dead(view_of(layout), A0, by="resume") is not None
    assert status(view_of(layout))["elapsed_s"] == 69.0, "not when it was found"


@pytest.mark.parametrize("last_s", [30.0, 90.0])
def test_a_finished_run_has_ended_though_a_parent_elsewhere_is_silent(
    last_s: float, tmp_path: Path
) -> None:
    """Two hosts shared it, and the one that began first crashed before or after the other ended."""
    layout = make_spool(tmp_path / "s", 2)
    admit(layout, 0, elsewhere())
    intend(layout, A0, parent=elsewhere())
    writer = start_journal(layout, A0, elsewhere(1))
    assert writer is not None
    writer.append(
        JournalLine(task=0, round=0, state=LineState.COMPLETE, start=1700000000.0, seconds=last_s)
    )
    admit(layout, 1, dead_process(), at=1700000010.0)
    intend(layout, B0, epoch=1, parent=dead_process())
    finish(begin(layout, B0), 1)
    close_as(layout, B0, Reason.FINISHED)
    end = ParentEnd(how=Ending.FINISHED, exit_code=0, at=1700000060.0)
    assert publish(layout.parent_end(1), pretty(end))
    now = status(view_of(layout))
    assert [row["state"] for row in now["parents"]] == ["silent", "finished"]
    assert (now["state"], now["elapsed_s"]) == ("complete", max(60.0, last_s))
    assert now["ended_at"] == 1700000000.0 + max(60.0, last_s)
    assert "silent" not in "\n".join(table_lines(now)).partition(" sum")[0].partition("rank ")[0]
    assert rows(now)[0]["note"] == "", "nobody waits for it"


def test_what_crashed_before_the_last_start_is_none_of_it(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    admit(layout, 0, elsewhere())
    intend(layout, A0, parent=elsewhere())
    admit(layout, 1, dead_process(), at=1700000100.0)
    intend(layout, B0, epoch=1, parent=dead_process())
    finish(begin(layout, B0), 0)
    close_as(layout, B0, Reason.FINISHED)
    end = ParentEnd(how=Ending.FINISHED, exit_code=0, at=1700000160.0)
    assert publish(layout.parent_end(1), pretty(end))
    assert status(view_of(layout))["elapsed_s"] == 60.0


def test_a_clock_that_is_behind_does_not_take_the_time_back(tmp_path: Path) -> None:
    """The hosts of the run are an hour ahead of whoever looks."""
    layout = make_spool(tmp_path / "s", 20)
    ahead = time.time() + 3600
    admit(layout, 0, myself(), at=ahead)
    intend(layout, A0)
    begin(layout, A0)
    beat(layout, A0, at=ahead + 63)
    with being_parent(layout, 0):
        assert status(view_of(layout))["elapsed_s"] == pytest.approx(63, abs=1)


# Sums.


def test_rows_and_counts_agree_whatever_attempts_and_rounds_there_were(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 12)
    for attempt, tasks in ((A0, (0, 1, 2)), (A1, (3, 4)), (B0, (5, 6, 2))):
        intend(layout, attempt)
        finish(begin(layout, attempt), *tasks)
        close_as(layout, attempt, Reason.RECYCLED)
    now = status(view_of(layout))
    assert [row["done"] for row in rows(now)] == [5, 3]
    lines = table_lines(now)
    sums = next(line for line in lines if line.startswith(" sum"))
    assert sums.split() == ["sum", "7", "0"]
    assert "the ranks have done 1 more" in "\n".join(lines)


# Time left.


def played(layout: Layout, costs: list[float], s_per_cost: float, ranks: int, share: float) -> None:
    """A live run with a parent elsewhere, whose ranks did this share of their tasks in order.

    A task takes its cost, and all ranks are at the end of a call now.
    """
    admit(layout, 0, elsewhere())
    (layout.beats / f"{epoch_name(0)}.1").touch()
    for rank in range(ranks):
        attempt = f"rank-{rank:04d}.a00"
        mine = range(rank, len(costs), ranks)
        done = list(mine)[: int(share * len(mine))]
        intend(layout, attempt, parent=elsewhere())
        writer = start_journal(layout, attempt, elsewhere(1 + rank))
        assert writer is not None
        at = time.time() - s_per_cost * sum(costs[index] for index in done)
        for index in done:
            seconds = s_per_cost * costs[index]
            writer.append(
                JournalLine(
                    task=index, round=0, state=LineState.COMPLETE, start=at, seconds=seconds
                )
            )
            at += seconds


@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize("n_tasks", [60, 3000])
def test_time_left_is_told_from_the_journals(kind: str, n_tasks: int, tmp_path: Path) -> None:
    """Of tasks that take as long as they cost, the longest first, half are done."""
    costs = [1.0] * n_tasks
    if kind == "unequal":
        costs = [1000.0 * (n_tasks - index) for index in range(n_tasks)]
    ranks = 3
    planned = [
        [task(index, cost=costs[index]) for index in range(rank, n_tasks, ranks)]
        for rank in range(ranks)
    ]
    layout = make_spool(tmp_path / "s", *planned)
    s_per_cost = 600.0 / sum(costs)
    played(layout, costs, s_per_cost, ranks, 0.5)
    views: list[Prospect] = []

    def prepare(view: View) -> None:
        view.use_run(msgspec.structs.replace(view.run, cost=sum(costs)))
        views.append(Prospect(view))

    view = open_view(layout.root, reads_claims=False, prepare=prepare)
    now = status(view, outlook=views[0].outlook)
    done = [index for index in range(n_tasks) if view.ledger.complete[index]]
    truth_s = s_per_cost * (sum(costs) - sum(costs[index] for index in done)) / ranks
    assert truth_s / 1.3 < now["left_s"] < truth_s * 1.3
    pace = len(done) / (s_per_cost * sum(costs[index] for index in done) / ranks)
    assert pace / 1.2 < now["tasks_per_s"] < pace * 1.2


def test_what_a_rank_is_at_is_partly_done_for_whoever_looks_for_the_first_time(
    tmp_path: Path,
) -> None:
    """Of tasks of 100 s the last one is in hand for 90 s, as the heartbeat alone tells."""
    layout = make_spool(tmp_path / "s", 6)
    played(layout, [1.0] * 6, 100.0, 1, 5 / 6)
    beat(layout, A0, elsewhere(1), task=5, task_since=time.time() - 90.0, in_hand=1)
    now = next(reading.follow_status(layout.root))
    assert now["ranks"][0]["in_hand"] == 1
    assert 5.0 < now["left_s"] < 11.0


def _make_prospect(prospects: list[Prospect], view: View) -> None:
    prospects.append(Prospect(view))


def test_of_a_journal_few_lines_are_looked_at_however_long_it_is(tmp_path: Path) -> None:
    looked: dict[int, int] = {}
    for n_tasks in (500, 5000):
        layout = make_spool(tmp_path / f"s{n_tasks}", n_tasks)
        intend(layout, A0)
        writer = begin(layout, A0)
        finish(writer, *range(n_tasks - 1))
        prospects: list[Prospect] = []
        make = partial(_make_prospect, prospects)
        open_view(layout.root, reads_claims=False, prepare=make)
        looked[n_tasks] = prospects[0]._n_looked[A0]
    assert 32 < looked[5000] <= looked[500] + 8 < 100


def test_no_file_is_opened_for_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[int, int] = {}
    for n_tasks in (20, 2000):
        layout = make_spool(tmp_path / f"s{n_tasks}", n_tasks)
        intend(layout, A0)
        finish(begin(layout, A0), *range(n_tasks - 1))
        take(layout, A0, n_tasks)
        beat(layout, A0, task=n_tasks - 1, task_since=time.time())
        with monkeypatch.context() as patch:
            paths = watch_opens(patch)
            next(reading.follow_status(layout.root))
            opened[n_tasks] = len(paths)
    assert opened[20] == opened[2000]
