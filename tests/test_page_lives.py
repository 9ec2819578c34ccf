"""Where a page puts calls and attempts in time, whatever late lines, clocks and races do."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, check_line, names, wait_until
from played import T0, Played, call, error

from gpuspool.orchestrator.page import lives, reading
from gpuspool.orchestrator.page.calls import CallOutcome
from gpuspool.orchestrator.page.lives import Cause, Standing
from gpuspool.orchestrator.page.reading import read_run
from gpuspool.spool.closing import publish_closing
from gpuspool.spool.journal import start_journal
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.records import Closing, Options, TaskFailure, Usage
from gpuspool.spool.states import AttemptState, Life, Reason

YEAR_S = 365 * 86400.0
DAY_S = 86400.0


def began(played: Played) -> list[tuple[int, float]]:
    calls = played.calls()
    pairs = zip(calls.tasks, calls.begins, strict=True)
    return [(task, round(begin - T0, 3)) for task, begin in pairs]


# Lines that come late.


def test_a_failure_that_was_written_late_lies_where_its_call_was(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b", "c", "d"])
    lines = [
        call(0, 9.0, 1.0),
        call(2, 11.0, 1.0),
        call(1, 10.0, 1.0, "failed", error=error("no")),
        call(3, 12.0, 1.0),
    ]
    played.attempt(0, 0, 8.0, lines, 14.0)
    assert began(played) == [(0, 9.0), (1, 10.0), (2, 11.0), (3, 12.0)]
    assert played.calls().jumps == []
    assert list(played.calls().outcomes) == [0, CallOutcome.FAILED, 0, 0]
    made = played.facts()
    assert made["notes"] == []
    assert made["meta"]["origin"] == pytest.approx(T0 + 8.0)


def test_many_late_failures_do_not_add_up(tmp_path: Path) -> None:
    n = 200
    played = Played(tmp_path / "S", [f"t{i}" for i in range(2 * n)])
    lines = []
    for i in range(n):
        lines += [
            call(2 * i + 1, 10.0 + 4 * i, 2.0),
            call(2 * i, 8.0 + 4 * i, 2.0, "held", error=error("no")),
        ]
    played.attempt(0, 0, 7.0, lines, 10.0 + 4 * n)
    assert began(played) == [(i, 8.0 + 2 * i) for i in range(2 * n)]


def test_a_late_failure_of_a_batch_lies_behind_the_tasks_of_its_own_call(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b", "c", "d"])
    lines = [
        call(0, 10.0, 0.5),
        call(2, 10.0, 0.5),
        call(3, 11.5, 2.0),
        call(1, 10.0, 0.5, "failed", error=error("no")),
    ]
    played.attempt(0, 0, 8.0, lines, 14.0)
    assert began(played) == [(0, 10.0), (2, 10.5), (1, 11.0), (3, 11.5)]


def test_a_clock_that_is_set_back_before_a_failure_is_seen_by_the_next_call(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b", "c"])
    lines = [
        call(0, 3610.0, 1.0),
        call(1, 12.0, 1.0, "failed", error=error("no")),
        call(2, 14.0, 1.0),
    ]
    played.attempt(0, 0, 3609.0, lines, 16.0, lived_s=6.0)
    assert [task for task, _ in began(played)] == [0, 1, 2]
    assert [begin for _, begin in began(played)] == pytest.approx([12.0, 13.0, 14.0])


JOB = """
import time

class Job:
    def __call__(self, task, ctx):
        time.sleep(0.4)
        if task.payload % 3 == 1:
            raise ValueError("no")
        return task.payload
"""


def test_calls_lie_where_a_real_run_with_failures_had_them(box: Box) -> None:
    box.write("job.py", JOB)
    box.run(
        "run", "job.py:Job", "--tasks", box.tasks(list(range(9))), "--ranks", "1", "--spool", "S",
        "--keep-going", code=3,
    )  # fmt: skip
    journal = (box / "S" / "journal" / "rank-0000.a00.jsonl").read_bytes()
    lines = [check_line(line) for line in journal.split(b"\n")[1:-1]]
    ended = [line for line in lines if line["state"] in ("complete", "failed")]
    starts = {line["task"]: line["start"] for line in ended}
    in_order = sorted(starts, key=starts.__getitem__)
    # That is what is tried here: such lines come late.
    assert [line["task"] for line in ended] != in_order
    played = Played.__new__(Played)
    played.root = box / "S"
    calls = played.calls()
    assert list(calls.tasks) == in_order
    assert list(calls.begins) == pytest.approx([starts[task] for task in in_order], abs=0.02)
    assert calls.jumps == []
    assert not any("clock" in note for note in played.facts()["notes"])


# Attempts that nobody has closed.


def test_an_attempt_elsewhere_of_which_nothing_was_heard_lived_until_it_was_last_heard_of(
    tmp_path: Path,
) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    name = played.attempt(0, 0, 0.0, [call(0, 2.0, 8.0)], None)
    played.heartbeat(name, 1, 11.0, 15.0)
    (attempt,) = played.read()
    assert attempt.standing is Standing.SILENT
    assert attempt.seconds == pytest.approx(15.0)
    assert list(attempt.calls.outcomes) == [CallOutcome.COMPLETE, CallOutcome.IN_HAND]
    made = played.facts()
    assert made["meta"]["length"] == pytest.approx(15.0)
    assert made["attempts"][0]["state"] == "silent"
    assert made["tiles"]["rank_s"] == pytest.approx(15.0)
    assert not any("under way" in note for note in made["notes"])


def test_an_attempt_elsewhere_that_beats_lives_until_now(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    name = played.attempt(0, 0, 0.0, [call(0, 2.0, 8.0)], None)
    played.beat(name)
    (attempt,) = played.read()
    assert attempt.standing is Standing.RUNNING
    assert attempt.ended == pytest.approx(time.time(), abs=60.0)


def test_the_call_in_hand_is_no_call_of_a_completed_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    name = played.attempt(0, 0, 0.0, [call(0, 2.0, 8.0)], None)
    played.heartbeat(name, 1, 11.0, 15.0)
    played.beat(name)
    monkeypatch.setattr(reading.time, "time", lambda: T0 + 3011.0)
    made = played.facts()
    spent = dict(made["hours"])
    assert spent["done"] == pytest.approx(8.0)
    assert spent["hand"] == pytest.approx(3000.0)
    assert sum(spent.values()) == pytest.approx(3011.0, abs=5.0)
    assert made["tiles"]["busy_s"] == pytest.approx(3008.0)


@pytest.mark.parametrize("task", [2, 5_000_000_000, -1])
@pytest.mark.parametrize("told_by", ["heartbeat", "started", "closing"])
def test_a_task_that_the_run_does_not_have_is_passed_over(
    tmp_path: Path, task: int, told_by: str
) -> None:
    import gpuspool

    played = Played(tmp_path / "S", ["a", "b"])
    if told_by == "closing":
        lost = TaskFailure(task=task, error=error("died"), start=T0 + 11.0)
        played.attempt(
            0, 0, 0.0, [call(0, 2.0, 8.0)], 20.0, lost=[lost], reason=Reason.CRASH,
            state=AttemptState.FAILED, by="parent", has_stats=False,
        )  # fmt: skip
    else:
        lines = [call(0, 2.0, 8.0)]
        if told_by == "started":
            lines.append(call(task, 11.0, 0.0, "started"))
        name = played.attempt(0, 0, 0.0, lines, None)
        if told_by == "heartbeat":
            played.heartbeat(name, task, 11.0, 15.0)
    gpuspool.report(
        played.root, tmp_path / "p.html", trace=tmp_path / "t.json", joblog=tmp_path / "log"
    )
    trace = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [one["name"] for one in trace if one.get("cat") == "complete"] == ["a"]
    assert not any(one.get("cat") in ("lost", "in hand") for one in trace)
    assert (tmp_path / "log").read_text().count("\n") == 2


def test_an_attempt_that_closes_itself_while_the_page_is_made_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    name = played.attempt(0, 0, 0.0, [call(0, 2.0, 8.0)], None)
    played.heartbeat(name, 1, 11.0, 15.0)

    def close_and_die(detector: FailureDetector, attempt: str) -> Life:
        closing = Closing(
            attempt=name, state=AttemptState.COMPLETE, reason=Reason.FINISHED, by=name, at=T0 + 20
        )
        publish_closing(played.layout, closing, [])
        return Life.DEAD

    view = played.view()
    monkeypatch.setattr(FailureDetector, "life", close_and_die)
    (attempt,) = read_run(view, "S").attempts
    assert attempt.standing is None
    assert CallOutcome.LOST not in attempt.calls.outcomes


def test_a_report_in_the_midst_of_added_tasks_has_a_trace_and_a_list(box: Box) -> None:
    """The files are read one after the other while workers write."""
    box.write("job.py", "import time\n\ndef work(task, ctx):\n    time.sleep(0.02)\n    return 1\n")
    started = box.start(
        "run", "job.py:work", "--lines", box.lines(20), "--ranks", "2", "--spool", "S"
    )
    wait_until(lambda: len(names(box / "S" / "heartbeat")) == 2)
    for number in range(1, 4):
        box.run(
            "run", "job.py:work", "--lines", box.lines(20 + 5 * number), "--spool", "S", "--add",
            "--ranks", "1",
        )  # fmt: skip
        box.run("report", "S", "-o", "p.html", "--trace", "t.json", "--joblog", "log")
    started.wait(0)


# What was told in usage/.


def usage(at: float, **more: Any) -> Usage:
    return Usage(at=T0 + at, **more)


def crashed(played: Played, lines: Any, told: list[Usage], ended: float, at: float = 0.0) -> None:
    """An attempt that told nothing when it ended."""
    played.attempt(
        0, 0, at, lines, ended, usage=told, reason=Reason.CRASH, state=AttemptState.FAILED,
        by="parent", has_stats=False,
    )  # fmt: skip


def test_what_was_told_before_a_clock_was_set_holds_for_its_own_time_alone(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a"])
    told = [
        usage(YEAR_S + 10.0, busy_s=0.0, idle_s={"start": 10.0}, rss=1000, cpu=8.0),
        usage(20.0, busy_s=10.0, idle_s={"start": 10.0}, rss=1000, cpu=1.0),
        usage(100.0, busy_s=90.0, idle_s={"start": 10.0}, rss=1000, cpu=1.0),
    ]
    crashed(played, [call(0, 10.0, 90.0)], told, 100.0)
    made = played.facts()
    assert made["meta"]["length"] == pytest.approx(100.0)
    assert [value for value in made["used"]["rss"] if value is not None] == pytest.approx(
        [1000.0] * 400
    )
    cores = made["used"]["cpu"]
    assert cores[20] == pytest.approx(8.0)
    assert cores[200] == pytest.approx(1.0)


def test_a_jump_before_the_first_line_of_usage_moves_the_beginning_once(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    lines = [call(0, 3610.0, 10.0), call(1, 22.0, 10.0)]
    told = [usage(25.0, busy_s=13.0, idle_s={"start": 2.0})]
    crashed(played, lines, told, 32.0, at=3608.0)
    (attempt,) = played.read()
    assert attempt.began - T0 == pytest.approx(10.0)
    assert attempt.seconds == pytest.approx(22.0)


def test_a_jump_behind_the_last_line_of_usage_moves_that_too(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    lines = [call(0, 3610.0, 10.0), call(1, 22.0, 10.0)]
    told = [usage(3615.0, busy_s=5.0, idle_s={"start": 2.0})]
    crashed(played, lines, told, 32.0, at=3608.0)
    (attempt,) = played.read()
    assert attempt.began - T0 == pytest.approx(10.0)


@pytest.mark.parametrize(
    "line",
    [
        {"gpu": 1e308}, {"gpu": -5000.0}, {"gpu_mem": 10**400}, {"gpu_mem": -1}, {"rss": 10**400},
        {"gpu_mem_total": 10**400}, {"cpu": 1e308}, {"cpu": -1.0}, {"rss": 2**64},
    ],
)  # fmt: skip
def test_a_line_with_a_figure_that_nobody_can_have_is_passed_over(
    tmp_path: Path, line: dict[str, Any]
) -> None:
    played = Played(tmp_path / "S", ["a"])
    good = usage(2.0, idle_s={"start": 1.0}, gpu=50.0, gpu_mem=10, gpu_mem_total=20, rss=30)
    crashed(played, [call(0, 1.0, 1.0)], [good], 9.0)
    bad = {"at": T0 + 3.0, "gpu": 50.0, "gpu_mem": 10, "rss": 30, "cpu": 1.0, **line}
    with played.layout.usage("rank-0000.a00").open("a") as file:
        file.write(json.dumps(bad) + "\n")
    made = played.facts()
    tiles = made["tiles"]
    assert (tiles["gpu_mean"], tiles["gpu_mem_most"], tiles["rss_most"]) == (50.0, 10, 30)
    assert made["used"]["gpu_mem_total"] == 20.0


def test_devices_of_one_host_count_once_however_many_jobs_held_them(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b", "c"], ranks=2)
    told = [usage(5.0, gpu_mem=10, gpu_mem_total=80)]
    played.attempt(0, 0, 0.0, [call(0, 1.0, 1.0)], 9.0, usage=told, job_id="17", device="0")
    played.attempt(1, 0, 0.0, [call(1, 1.0, 1.0)], 9.0, usage=told, job_id="17", device="1")
    later = [usage(105.0, gpu_mem=10, gpu_mem_total=80)]
    played.attempt(0, 1, 100.0, [call(2, 101.0, 1.0)], 109.0, usage=later, job_id="18")
    assert played.facts()["used"]["gpu_mem_total"] == 160.0


def test_ranks_that_share_a_device_tell_of_one(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"], ranks=2)
    told = [usage(9.0, gpu_mem=60, gpu_mem_total=80)]
    for rank in range(2):
        played.attempt(
            rank, 0, 0.0, [call(rank, 1.0, 1.0)], 9.0, usage=told, options=Options(ranks_per_gpu=2)
        )
    used = played.facts()["used"]
    assert used["gpu_mem_total"] == 80.0
    assert max(used["gpu_mem"]) == pytest.approx(60.0)


def test_the_pauses_of_a_long_attempt_are_no_more_than_a_picture_shows(tmp_path: Path) -> None:
    n = 3000
    played = Played(tmp_path / "S", ["a", "b"])
    told = []
    idle = {"inputs": 0.0, "publish": 0.0}
    for number in range(n):
        idle = {**idle, ("inputs", "publish")[number % 2]: 30.0 + number}
        told.append(usage(60.0 * (number + 1), busy_s=0.0, idle_s=idle))
    crashed(played, [call(0, 1.0, 1.0), call(1, 60.0 * n, 1.0)], told, 60.0 * n + 2)
    (attempt,) = played.read()
    assert 10 < len(attempt.pauses) <= lives.MOST_PAUSES + 6
    assert {Cause.INPUTS, Cause.PUBLISH} & {cause for _, cause in attempt.pauses}


# Clocks of several hosts.


def test_a_host_whose_clock_is_behind_is_named(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"], ranks=2)
    run = played.view().run
    start = run.created_at - T0
    played.start(0, start + 1.0, "n1")
    played.start(1, start - 3 * YEAR_S, "n2")
    played.start(2, start + 30.0, "n1")
    played.attempt(0, 0, start + 1.0, [call(0, start + 2.0, 1.0)], start + 9.0)
    notes = [note for note in played.facts()["notes"] if "Clocks differ" in note]
    assert len(notes) == 1
    assert "By the clock of n2 a start began" in notes[0]


def test_clocks_that_agree_are_not_named(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"], ranks=2)
    start = played.view().run.created_at - T0
    for epoch in range(3):
        played.start(epoch, start + 10.0 - epoch, f"n{epoch}")
    assert not any("Clocks differ" in note for note in played.facts()["notes"])


# From which call a task has its verdict.


def test_the_first_of_two_calls_by_the_clock_counts(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"], ranks=2)
    played.attempt(0, 0, 0.0, [call(0, 90.0, 1.0), call(1, 92.0, 1.0)], 100.0)
    played.attempt(1, 0, 0.0, [call(0, 10.0, 1.0)], 100.0)
    counts = played.facts()["rate"]["counts"]
    assert [at for at, n in enumerate(counts) if n] == [43, 371]


def test_what_was_redone_is_done_when_it_is_done_again(box: Box) -> None:
    box.write("job.py", "def work(task, ctx):\n    return 1\n")
    lines = box.lines(4)
    box.run("run", "job.py:work", "--lines", lines, "--spool", "S", "--ranks", "1")
    box.run("redo", "S", "t1", "t2")
    played = Played.__new__(Played)
    played.root = box / "S"
    first, second = played.read()
    assert list(first.calls.tells) == [task not in (1, 2) for task in first.calls.tasks]
    assert list(second.calls.tells) == [1, 1]
    assert sum(played.facts()["rate"]["counts"]) == 4
    box.run("report", "S", "--joblog", "log")
    rows = [row.split("\t") for row in (box / "log").read_text().splitlines()[1:]]
    assert sorted(int(row[0]) for row in rows) == [1, 2, 3, 4]
    again = {int(row[0]) for row in rows if float(row[2]) >= second.began - 0.01}
    assert again == {2, 3}


def test_a_journal_is_read_that_nobody_has_closed_yet(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a"])
    assert start_journal(played.layout, "rank-0000.a00", played.who("n1", os.getpid()))
    assert played.facts()["tiles"]["complete"] == 0
