"""How processes end: stopped by strangers, unable to say so, or with a job that does not let go."""

import pytest
from helpers import JOBS, Box, assert_sound, names, record, wait_until


def starts(box: Box) -> int:
    path = box / "starts"
    return len(path.read_text().split()) if path.exists() else 0


def stopped_at_once(box: Box, stop: str) -> list[str]:
    command = ["run", f"{JOBS}/harsh.py:StoppedAtOnce", "--tasks", box.tasks(["a", "b"])]
    command += ["--arg", f"starts={box / 'starts'}", "--arg", f"gate={box / 'gate'}"]
    return [*command, "--arg", f"stop={stop}", "--spool", "S", "--max-restarts", "1"]


@pytest.mark.parametrize("stop", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_stop_that_nobody_here_ordered_and_that_did_nothing_counts(box: Box, stop: str) -> None:
    """Else the worker is started again and again, without a pause, an end or a word."""
    done = box.run(*stopped_at_once(box, stop), code=4)
    assert starts(box) == 2
    assert "rank-0000.a00 was told to stop by somebody else" in done.err
    assert "every rank failed too often" in done.err
    assert "was told to stop by a signal of somebody else" in done.err
    assert names(box / "S" / "failed-tasks") == []


def test_a_stop_of_a_stranger_that_ends_costs_nothing(box: Box) -> None:
    started = box.start(*stopped_at_once(box, "SIGTERM"))
    wait_until(lambda: names(box / "S" / "stopped"))
    (box / "gate").touch()
    started.wait(0)
    assert_sound(box, "S", 2)


def test_whoever_is_drained_is_not_said_to_be_stopped_by_a_stranger(box: Box) -> None:
    job = [f"{JOBS}/gates.py:gated", "--tasks", box.tasks(["wait", "wait"])]
    started = box.start("run", *job, "--arg", f"gate={box / 'gate'}", "--spool", "S")
    wait_until((box / "gate.waiting").exists)
    box.run("drain", "S")
    (box / "gate").touch()
    done = started.wait(75)
    assert "somebody else" not in done.err
    assert record(box / "S" / "stopped" / "rank-0000.a00.json")["reason"] == "drained"
