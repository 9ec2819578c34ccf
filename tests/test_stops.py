"""A stop that everybody gets: schedulers, systemd and people signal parent, workers, commands and
the processes of jobs alike, in any order. No task fails for it, and none that fails by itself is
excused.
"""

import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import (
    GPUSPOOL,
    JOBS,
    Box,
    Started,
    assert_sound,
    identities,
    journal_lines,
    kill,
    names,
    record,
    wait_until,
)

from gpuspool.spool.signals import MOMENT_S, STOP_MOMENT_S, STOP_SIGNALS, is_ending, moment_after
from gpuspool.worker.drain import Cause, Drain

# As a terminal would start it; these tests may run under nohup(1).
AS_FROM_A_TERMINAL = ("env", "--default-signal=HUP,INT", GPUSPOOL)
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
STOPS.append(signal.SIGXCPU)


def ready(box: Box) -> list[list[int]]:
    """The pids of each task that is at work: its process, then its children."""
    path = box / "gate.ready"
    lines = path.read_text().splitlines() if path.exists() else []
    return [[int(word) for word in line.split()] for line in lines]


def start(box: Box, job: str, ranks: int = 1, tasks: int = 4) -> tuple[Started, list[str | Path]]:
    """Start a job of stops.py, or a command; returns it once each rank has a task at work."""
    gate = str(box / "gate")
    command: list[str | Path] = ["run", "--lines", box.lines(tasks), "--ranks", str(ranks)]
    command += ["--spool", "S"]
    if job == "command":
        script = (
            "import os, sys, time\n"
            "open(sys.argv[1] + '.ready', 'a').write(f'{os.getppid()} {os.getpid()}\\n')\n"
            "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
        )
        command += ["--", sys.executable, "-c", script, gate, "{key}"]
    else:
        command[1:1] = [f"{JOBS}/stops.py:{job}"]
        command += ["--arg", f"gate={gate}"]
    started = box.start(*command, program=AS_FROM_A_TERMINAL)
    wait_until(lambda: len(ready(box)) == ranks)
    return started, command


def assert_given_back(box: Box, started: Started, command: list[str | Path], tasks: int) -> None:
    """The run was drained, nobody was blamed, and it goes on to a good end."""
    done = started.wait(75)
    assert "0 of" in done.err
    assert [line for line in journal_lines(box / "S") if line["state"] == "failed"] == []
    assert names(box / "S" / "failed-tasks") == []
    closings = [record(box / "S" / "stopped" / name) for name in names(box / "S" / "stopped")]
    assert closings
    for closing in closings:
        assert closing["state"] == "stopped"
        assert not closing.get("failures")
    for path in (box / "S" / "manifests").glob("*.orphans.jsonl"):
        assert b"crashes" not in path.read_bytes()
        assert b"careful" not in path.read_bytes()
    assert box.processes() == []
    (box / "gate").touch()
    box.run(*command)
    assert_sound(box, "S", tasks)


KINDS = ["command", "checked", "forked", "Raises", "Interrupts", "Dies"]


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_stop_of_commands_workers_and_parent_fails_no_task(
    box: Box, number: signal.Signals
) -> None:
    """The commands first, so that workers see them die before anything else."""
    started, command = start(box, "command", ranks=2)
    for worker, child in ready(box):
        kill(child, number)
        kill(worker, number)
    started.signal(number)
    assert_given_back(box, started, command, 4)


@pytest.mark.parametrize("job", KINDS)
@pytest.mark.parametrize("order", ["down", "up"])
def test_in_whatever_order_and_whatever_the_job_makes_of_it(box: Box, job: str, order: str) -> None:
    started, command = start(box, job, ranks=2)
    pids = [started.pid, *identities(box / "S").values()]
    pids += [child for line in ready(box) for child in line[1:]]
    for pid in pids if order == "down" else reversed(pids):
        kill(pid, signal.SIGTERM)
    assert_given_back(box, started, command, 4)


@pytest.mark.parametrize("job", ["command", "checked"])
def test_a_stop_that_the_workers_do_not_get_themselves(box: Box, job: str) -> None:
    """Of whoever has taken the signals, or where only commands and the parent are signalled."""
    started, command = start(box, job)
    [[_, child]] = ready(box)
    kill(child, signal.SIGTERM)
    started.signal(signal.SIGTERM)
    assert_given_back(box, started, command, 4)


@pytest.mark.parametrize("job", ["Raises", "Interrupts", "Dies"])
def test_a_worker_that_dies_or_raises_before_the_parent_is_told(box: Box, job: str) -> None:
    started, command = start(box, job)
    [[worker]] = ready(box)
    kill(worker, signal.SIGTERM)
    if job == "Dies":
        wait_until(lambda: worker not in box.processes())
    started.signal(signal.SIGTERM)
    assert_given_back(box, started, command, 4)


@pytest.mark.parametrize("how", ["SIGTERM", "--time-limit", "drain"])
def test_a_job_that_takes_the_signals_is_drained_by_the_spool(box: Box, how: str) -> None:
    gate = f"gate={box / 'gate'}"
    command: list[str | Path] = ["run", f"{JOBS}/stops.py:Deaf", "--lines", box.lines(2)]
    command += ["--arg", gate, "--spool", "S", "--grace", "20s"]
    more = ["--time-limit", "3s"] if how == "--time-limit" else []
    started = box.start(*command, *more)
    wait_until(lambda: ready(box))
    if how == "SIGTERM":
        started.signal(signal.SIGTERM)
    elif how == "drain":
        box.run("drain", "S")
    started.wait(4 if how == "drain" else 75)
    [closing] = [record(box / "S" / "stopped" / name) for name in names(box / "S" / "stopped")]
    assert closing["reason"] == "drained", "it was not killed at the end of its grace"
    word = "drain.0000" if how == "drain" else "leave.0000"
    assert names(box / "S" / "control") == [word]
    (box / "gate").touch()
    box.run(*command)
    assert_sound(box, "S", 2)


def test_a_stop_while_the_job_is_made_is_no_failed_load(box: Box) -> None:
    started, command = start(box, "TermsAtLoad")
    [[_, child]] = ready(box)
    kill(child, signal.SIGTERM)
    started.signal(signal.SIGTERM)
    assert_given_back(box, started, command, 4)


def test_a_call_that_hangs_after_a_stop_does_not_time_out(box: Box) -> None:
    """Its helper is gone, and its time is over before its grace."""
    gate = f"gate={box / 'gate'}"
    command: list[str | Path] = ["run", f"{JOBS}/stops.py:Raises", "--lines", box.lines(1)]
    command += ["--arg", gate, "--spool", "S"]
    job = box.write("hangs.py", HANGS)
    command[1] = f"{job}:hangs"
    started = box.start(*command, "--task-timeout", "6s", "--grace", "20s")
    wait_until(lambda: ready(box))
    started.signal(signal.SIGTERM)
    assert_given_back(box, started, command, 1)
    assert "it was told to stop, and its call took too long; no task is blamed" in started.err
    assert "in hangs" in (box / "S/logs/rank-0000.a00.log").read_text(), "where it hung"


HANGS = """
import os
import time


def hangs(task, ctx):
    with open(ctx.args["gate"] + ".ready", "a") as file:
        file.write(f"{os.getpid()}\\n")
    while not os.path.exists(ctx.args["gate"]):
        time.sleep(0.01)
"""


@pytest.mark.parametrize("code", ["kill -TERM $$", "exit 143", "kill -INT $$", "exit 1"])
def test_a_command_that_ends_itself_fails_where_nobody_stops(box: Box, code: str) -> None:
    command = ["run", "--lines", box.lines(3), "--spool", "S", "--keep-going"]
    box.run(*command, "--", "sh", "-c", code, "{index}", code=3)
    assert [line["state"] for line in journal_lines(box / "S")] == ["failed"] * 3


def test_a_worker_that_ends_itself_is_blamed_where_nobody_stops(box: Box) -> None:
    job = box.write("selfish.py", SELFISH)
    command = ["run", f"{job}:selfish", "--tasks", box.tasks([0, 1]), "--spool", "S"]
    box.run(*command, code=3)
    states = {result["index"]: result["state"] for result in box.results("S")}
    assert states == {0: "failed", 1: "complete"}


SELFISH = """
import os
import signal


def selfish(task, ctx):
    if task.payload == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_task_that_ends_well_during_a_drain_is_complete(box: Box) -> None:
    """And one that failed long before it has failed."""
    job = box.write("mixed.py", MIXED)
    command: list[str | Path] = ["run", f"{job}:mixed", "--tasks", box.tasks(["bad", "wait", "go"])]
    command += ["--arg", f"gate={box / 'gate'}", "--spool", "S", "--keep-going"]
    started = box.start(*command)
    wait_until(lambda: ready(box))
    wait_until(lambda: time.time() > (box / "gate.ready").stat().st_mtime + 2 * MOMENT_S)
    started.signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM received" in started.err)
    (box / "gate").touch()
    started.wait(75)
    states = {line["task"]: line["state"] for line in journal_lines(box / "S")}
    assert states == {0: "failed", 1: "complete"}


MIXED = """
import os
import time


def mixed(task, ctx):
    if task.payload == "bad":
        raise ValueError("bad")
    if task.payload == "wait":
        with open(ctx.args["gate"] + ".ready", "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not os.path.exists(ctx.args["gate"]):
            time.sleep(0.01)
"""


def test_a_failure_counts_unless_a_stop_was_asked_for_within_its_moment() -> None:
    now = time.monotonic()
    drain = Drain()
    assert drain.cause_of(now - 10, 1.0) is Cause.OTHER
    assert drain.cause_of(now, 1000.0) is Cause.UNKNOWN
    drain.request()
    assert drain.cause_of(now - 10, 1.0) is Cause.OTHER
    assert drain.cause_of(now - 10, 1000.0) is Cause.STOP
    assert drain.cause_of(time.monotonic(), 0.0) is Cause.STOP


def test_a_drain_that_was_seen_late_excuses_what_failed_since_the_look_before() -> None:
    published: list[bool] = []
    drain = Drain(is_published=lambda: bool(published))
    drain.look()
    failed_at = time.monotonic()
    assert drain.cause_of(failed_at - 100, 1.0) is Cause.OTHER
    published.append(True)
    drain.look()
    assert drain.is_requested
    assert drain.cause_of(failed_at, 0.0) is Cause.STOP
    assert drain.cause_of(failed_at - 100, 1.0) is Cause.OTHER


def test_which_statuses_tell_of_a_stop() -> None:
    for number in STOP_SIGNALS:
        assert is_ending(-number)
        assert is_ending(128 + number)
    for status in (0, 1, 2, 15, -signal.SIGSEGV, 128 + signal.SIGSEGV, 255):
        assert not is_ending(status)
    assert moment_after(looks_like_stop=True) == STOP_MOMENT_S > MOMENT_S
