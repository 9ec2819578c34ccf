"""Limits of time count run time: who stood still, or was publishing, has lost no task for it."""

import signal
import time
from pathlib import Path

import pytest
from helpers import (
    JOBS,
    Box,
    assert_sound,
    identities,
    is_alive,
    kill,
    names,
    start_gated,
    wait_until,
    waiting,
)
from msgspec.structs import replace
from spooling import A0, begin, intend, make_spool, take, view_of

from gpuspool.orchestrator.supervise.overdue import Lateness, OverdueWatch
from gpuspool.spool.identity import is_stopped
from gpuspool.spool.records import JournalLine, Options
from gpuspool.spool.timeouts import parent_limit_s

# The limit of these tests, and a time that is beyond anybody's patience with it.
LIMIT_S = 1.0
LONG_S = 2.5 * parent_limit_s(LIMIT_S)


def let_time_pass(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until)


@pytest.mark.parametrize("who", ["worker", "parent", "both"])
def test_who_was_stopped_has_not_taken_too_long(box: Box, who: str) -> None:
    started, _ = start_gated(box, ["go", "wait", "go"], "--task-timeout", f"{LIMIT_S}s")
    wait_until(lambda: waiting(box))
    stopped = []
    if who != "parent":
        stopped.append(identities(box / "S")["rank-0000.a00"])
    if who != "worker":
        stopped.append(started.pid)
    for pid in stopped:
        kill(pid, signal.SIGSTOP)
    if who == "parent":
        # Of the worker's own time no more than a part passes.
        (box / "gate").touch()
    let_time_pass(LONG_S)
    (box / "gate").touch()
    for pid in reversed(stopped):
        kill(pid, signal.SIGCONT)
    started.wait(0)
    assert_sound(box, "S", 3)
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]


def test_a_worker_that_stays_stopped_is_replaced_and_its_task_completes(box: Box) -> None:
    started, _ = start_gated(
        box, ["go", "wait", "go"], "--task-timeout", "30s", "--stall-timeout", "1s"
    )
    wait_until(lambda: waiting(box))
    (box / "gate").touch()
    pid = identities(box / "S")["rank-0000.a00"]
    kill(pid, signal.SIGSTOP)
    done = started.wait(0)
    if names(box / "S" / "attempts") != ["rank-0000.a00.json"]:
        # Else it was stopped only after its last task.
        assert "stands still" in done.err
        assert not is_alive(pid)
    assert_sound(box, "S", 3)


def test_a_worker_that_stays_stopped_while_it_loads_has_not_taken_too_long(box: Box) -> None:
    command = ["run", f"{JOBS}/harsh.py:StoppedAtOnce", "--tasks", box.tasks(["a", "b"])]
    command += ["--arg", f"starts={box / 'starts'}", "--arg", f"gate={box / 'gate'}"]
    command += ["--arg", "stop=SIGSTOP", "--spool", "S", "--stall-timeout", "1s"]
    started = box.start(*command)
    wait_until(lambda: (box / "starts").exists() and (box / "starts").read_text().strip())
    # The first process is stopped now, or about to be. The next finds the gate and is left alone.
    wait_until(lambda: is_stopped(int((box / "starts").read_text().split()[0])))
    (box / "gate").touch()
    done = started.wait(0)
    assert "stands still" in done.err
    assert "too long" not in done.err
    assert_sound(box, "S", 2)


def test_publishing_outputs_is_not_part_of_a_call(box: Box) -> None:
    command = ["run", f"{JOBS}/harsh.py:PublishesMany", "--tasks", box.tasks(["a", "b", "c"])]
    command += ["--arg", f"folder={box / 'many'}", "--arg", "files=2500", "--spool", "S"]
    done = box.run(*command, "--task-timeout", "0.1s")
    results = assert_sound(box, "S", 3)
    assert results[0]["seconds"] < 0.1
    assert "took too long" not in done.err
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]


def test_the_time_in_which_nobody_looked_is_not_that_of_the_task(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    writer = begin(layout, A0)
    take(layout, A0, 1)
    writer.append(JournalLine(task=0, round=0, state="started"))
    view = view_of(layout)
    view.intents[A0] = replace(intend(layout, A0), options=Options(task_timeout_s=10.0))
    watch = OverdueWatch(view)
    assert watch.look(A0, is_stopped=False, now=0.0) is Lateness.NONE
    assert watch.look(A0, is_stopped=False, now=9.0) is Lateness.NONE
    assert watch.look(A0, is_stopped=False, now=9000.0) is Lateness.NONE
    now = 9000.0
    while watch.look(A0, is_stopped=False, now=now) is Lateness.NONE:
        now += 1.0
    assert 9005.0 < now < 9000.0 + parent_limit_s(10.0)
