"""How processes end: stopped by strangers, unable to say so, or with a job that does not let go."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import JOBS, Box, assert_sound, names, record, wait_until, wait_until_told_to_drain


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this container may not mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


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
    wait_until_told_to_drain(box / "S")
    (box / "gate").touch()
    done = started.wait(4)
    assert "somebody else" not in done.err
    assert record(box / "S" / "stopped" / "rank-0000.a00.json")["reason"] == "drained"


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("thread", "threads of the job (uploads) are still at work"),
        ("handler", "an exit handler of the job is still at work"),
        # No Python thread runs any more, so a timer of C ends it.
        ("object_in_c", "Timeout"),
    ],
)
def test_a_process_that_does_not_end_is_told_and_ended(box: Box, what: str, word: str) -> None:
    job = f"{JOBS}/harsh.py:LetsNotGo"
    command = ["run", job, "--tasks", box.tasks(["a", "b"]), "--arg", f"what={what}"]
    done = box.run(*command, "--spool", "S")
    assert "rank-0000.a00 has done its work, but threads or exit handlers of the job go on" in (
        done.err
    )
    assert word in (box / "S" / "logs" / "rank-0000.a00.log").read_text()
    assert_sound(box, "S", 2)
    assert box.processes() == []


def test_a_process_that_can_neither_say_how_it_ended_nor_end_ends(box: Box, small: Path) -> None:
    """Its disk is full and a thread of the job lives on: nobody else knows that it is over."""
    job = f"{JOBS}/harsh.py:LetsNotGo"
    command = ["run", job, "--tasks", box.tasks(["a", "b"]), "--arg", "what=thread"]
    command += ["--arg", f"fill={small / 'filled'}", "--spool", str(small / "S")]
    started = box.start(*command)
    done = started.wait(1)
    assert "No space left on device" in done.err
    assert box.processes() == []
    (small / "filled").unlink()
    assert box.status(small / "S")["tasks"]["failed"] == 0


# A `resume` that waits between its lock and its announcement, until it is let go.
SLOW_START = """
import sys, time
from pathlib import Path
import gpuspool
from gpuspool.orchestrator.api import epoch

real = epoch.claim_out

def slow(view, lack):
    Path("starting").touch()
    while not Path("let-go").exists():
        time.sleep(0.004)
    real(view, lack)

epoch.claim_out = slow
sys.exit(gpuspool.resume("S").exit_code)
"""


@pytest.mark.parametrize("before", ["drained", "killed"])
def test_a_drain_in_the_first_moments_of_a_start_drains_that_start(box: Box, before: str) -> None:
    job = [f"{JOBS}/gates.py:gated", "--tasks", box.tasks(["go", "wait", "go"])]
    started = box.start("run", *job, "--arg", f"gate={box / 'gate'}", "--spool", "S")
    wait_until((box / "gate.waiting").exists)
    if before == "killed":
        box.kill_all()
        (box / "gate").touch()
    else:
        box.run("drain", "S")
        wait_until_told_to_drain(box / "S")
        (box / "gate").touch()
        started.wait(4)
    behind = len(names(box / "S" / "attempts"))
    resumed = box.start(box.write("slow.py", SLOW_START), program=(sys.executable,))
    wait_until((box / "starting").exists)
    box.run("drain", "S")
    (box / "let-go").touch()
    done = resumed.wait(4)
    assert "`gpuspool drain` asked for it" in done.err
    assert len(names(box / "S" / "attempts")) == behind, "nobody was started"
    box.run("resume", "S")
    assert_sound(box, "S", 3)
