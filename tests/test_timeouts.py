"""Hangs: whoever takes too long is ended, wherever it is stuck, and named; nobody else is hurt."""

import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    JOBS,
    Box,
    assert_sound,
    identities,
    is_alive,
    kill,
    limit,
    names,
    record,
    start_gated,
    wait_until,
    waiting,
)
from spooling import A0, begin, close_dead, make_spool, take, task, view_of

from gpuspool.spool.death import TimedOut
from gpuspool.spool.records import Closing, JournalLine, Options, TaskLine
from gpuspool.spool.timeouts import describe_limit, limit_s, parent_limit_s, read_stacks, where_of


def run_hanging(
    box: Box, payloads: list[str], *options: str, job: str = "hangs", code: int = 3
) -> Any:
    """Runs a job of harsh.py; returns the one result that failed."""
    box.run(
        "run",
        f"{JOBS}/harsh.py:{job}",
        "--tasks",
        box.tasks(payloads),
        "--spool",
        "S",
        *options,
        code=code,
    )
    results = box.results("S")
    failed = [result for result in results if result["state"] != "complete"]
    assert (
        [result["key"] for result in failed] == [f"t{payloads.index('hang')}"]
        if "hang" in payloads
        else True
    )
    assert len(failed) == 1
    assert box.problems("S") == []
    assert box.processes() == []
    return failed[0]


@pytest.mark.parametrize("how", ["sleep", "in C", "with a child"])
def test_a_task_that_hangs_fails_with_every_threads_stack(box: Box, how: str) -> None:
    payloads = ["a", "b", how, "d", "e", "f"]
    most = limit(1)
    failed = run_hanging(
        box, payloads, "--ranks", "2", "--task-timeout", most, "--max-restarts", "0"
    )
    error = failed["error"]
    assert (failed["index"], error["kind"], error["type"]) == (2, "timeout", "TaskTimeout")
    assert f"--task-timeout {float(most[:-1]):g}s" in error["message"]
    assert error["where"].startswith("harsh.py:")
    assert "in hang" in error["traceback"]
    assert len(set(error["attempts"])) == 2, "a second opinion"
    assert error["attempts"][-1].startswith(f"rank-000{error['rank']}.")
    assert (error["device"], error["host"]) == (
        "cpu",
        record(box / "S" / "attempts" / "rank-0000.a00.json")["parent"]["host"],
    )
    for attempt in error["attempts"]:
        assert "in hang" in (box / "S" / "logs" / f"{attempt}.log").read_text()
    told = box.run("failed", "S").out
    assert told.startswith("1 task: timeout, TaskTimeout at harsh.py:")
    assert "\n  message: took longer than " in told
    assert "\n    t2  #2  " in told


def test_a_batch_that_hangs_is_run_again_alone_and_only_the_culprit_fails(box: Box) -> None:
    payloads = ["a", "b", "sleep", "d", "e", "f", "g", "h"]
    failed = run_hanging(box, payloads, "--task-timeout", limit(0.3), job="HangsInBatches")
    assert (failed["index"], failed["error"]["kind"]) == (2, "timeout")
    closings = [record(box / "S" / "failed" / name) for name in names(box / "S" / "failed")]
    told = [(closing["reason"], len(closing.get("lost", []))) for closing in closings]
    assert told == [("timeout", 0)] * 3, "in the batch, then alone and alone again"
    first, second = failed["error"]["attempts"]
    assert first == "rank-0000.a01" < second


def test_a_process_that_stands_still_is_killed_by_its_parent(box: Box) -> None:
    """Nobody can say that a task took long which was stopped all the time; that its workers had to
    be killed counts as any kill.
    """
    failed = run_hanging(box, ["a", "stopped", "c"], "--stall-timeout", limit(0.2))
    error = failed["error"]
    assert (failed["index"], error["kind"], error["type"]) == (1, "lost", "WorkerLost")
    assert "5 times" in error["message"]


def test_a_worker_that_hangs_while_it_loads_is_started_again(box: Box) -> None:
    command = ["run", f"{JOBS}/harsh.py:HangsWhileItLoads", "--tasks", box.tasks(["a", "b"])]
    command += ["--arg", f"gate={box / 'gate'}", "--spool", "S", "--stall-timeout", limit(1)]
    done = box.run(*command)
    assert "rank-0000.a00 ended: it took too long" in done.err
    assert_sound(box, "S", 2)
    closing = record(box / "S" / "failed" / "rank-0000.a00.json")
    assert (closing["reason"], closing.get("lost")) == ("timeout", None)
    assert (
        "HangsWhileItLoads" in closing["error"]["traceback"]
        or "__init__" in closing["error"]["traceback"]
    )


def test_waiting_for_a_retry_is_no_hang(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/harsh.py:raises_once",
        "--tasks",
        box.tasks(["a", "b"]),
        "--arg",
        f"gate={box / 'gate'}",
    ]
    box.run(
        *command,
        "--spool",
        "S",
        "--retries",
        "1",
        "--task-timeout",
        limit(0.2),
        "--stall-timeout",
        limit(0.2),
    )
    assert_sound(box, "S", 2)
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]


def late(root: Path, left: list[TaskLine], *started: int) -> tuple[Closing, list[TaskLine]]:
    """An attempt claims these tasks, says that it calls some, and is killed for its time limit."""
    layout = make_spool(root / "s", left)
    writer = begin(layout, A0)
    take(layout, A0, len(left))
    if started:
        writer.append(JournalLine(task=started[0], round=0, state="started", batch=started[1:]))
    view = view_of(layout)
    closing = close_dead(view, A0, by="parent", death=TimedOut(read_stacks(layout, A0)))
    assert closing is not None
    return closing, list(view.manifests[f"{A0}.orphans"].tasks())


def test_only_a_task_that_a_call_held_alone_fails_by_a_time_out(tmp_path: Path) -> None:
    tasks = [task(0), task(1), task(2)]
    closing, left = late(tmp_path / "alone", tasks, 1)
    assert [held.task for held in closing.held] == [1]
    assert left == [tasks[0], tasks[2]]
    closing, left = late(tmp_path / "batch", tasks, 0, 1)
    assert (closing.failures, closing.suspects) == ([], 2)
    assert [(line.task, line.careful) for line in left] == [(0, True), (1, True), (2, False)]


def test_a_worker_that_stands_still_between_two_calls_fails_no_task(tmp_path: Path) -> None:
    closing, left = late(tmp_path, [task(0)])
    assert (closing.reason, closing.failures, closing.suspects) == ("timeout", [], 0)
    assert left == [task(0)]


def test_without_a_parent_a_hang_is_found_all_the_same(box: Box) -> None:
    """The worker's own timer ends it; whoever goes on finds the stacks, and the task fails as it
    would have.
    """
    payloads = ["go", "go", "wait"]
    started, command = start_gated(box, payloads, "--task-timeout", limit(2))
    wait_until(lambda: waiting(box))
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    pid = identities(box / "S")["rank-0000.a00"]
    wait_until(lambda: not is_alive(pid))
    done = box.run(*command, code=3)
    assert "2 of 3 tasks complete, 1 failed" in done.err
    assert box.results("S")[2]["error"]["kind"] == "timeout"


def test_a_worker_that_is_stopped_while_idle_keeps_nobody(box: Box) -> None:
    started, _ = start_gated(box, ["wait", "go"], "--ranks", "2", "--stall-timeout", limit(30))
    wait_until(
        lambda: waiting(box) and len(identities(box / "S")) == 2
    )  # whoever was faster took both tasks
    busy = int((box / "gate.waiting").read_text().split()[1])
    (idle,) = set(identities(box / "S").values()) - {busy}
    wait_until(lambda: box.status("S")["tasks"]["complete"] == 1)
    kill(idle, signal.SIGSTOP)
    (box / "gate").touch()
    started.wait(0)
    assert_sound(box, "S", 2)
    assert box.processes() == []


def test_the_limit_of_a_call_is_the_shorter_of_its_two() -> None:
    options = Options(task_timeout_s=10, stall_timeout_s=25)
    assert [limit_s(options, tasks) for tasks in (0, 1, 2, 3)] == [25, 10, 20, 25]
    assert [describe_limit(options, tasks)[0] for tasks in (0, 1, 3)] == [
        "StallTimeout",
        "TaskTimeout",
        "StallTimeout",
    ]
    assert limit_s(Options(task_timeout_s=10), 0) is None
    assert limit_s(Options(), 5) is None


@pytest.mark.parametrize("seconds", [0.1, 1.0, 30.0, 3600.0])
def test_a_parent_waits_longer_than_the_workers_own_timer(seconds: float) -> None:
    assert parent_limit_s(seconds) >= 1.1 * seconds + 1


def test_the_line_of_a_hang_is_that_of_the_main_thread() -> None:
    stacks = (
        "Timeout (0:00:01)!\n"
        "Thread 0x01 (most recent call first):\n"
        '  File "/a/beat.py", line 3 in run\n\n'
        "Thread 0x02 (most recent call first):\n"
        '  File "/x y/job.py", line 17 in f\n'
        '  File "/a/b.py", line 5 in g\n'
    )
    assert where_of(stacks) == "job.py:17"
    assert where_of("") == ""
