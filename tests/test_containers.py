"""Process 1 of a container, other namespaces, and a run inside a task of another run."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from helpers import (
    GPUSPOOL,
    JOBS,
    Box,
    assert_sound,
    identities,
    is_alive,
    kill,
    names,
    wait_until,
    waiting,
)


def unshare(*options: str) -> tuple[str, ...]:
    """`unshare` with these options, in front of gpuspool; skips where this is not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1)")
    command = ("unshare", *options, "--fork", "--kill-child")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"this machine does not allow `unshare {' '.join(options)}`")
    return (*command, GPUSPOOL)


def child_of(pid: int) -> int:
    """The only child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def test_process_1_of_a_container_keeps_no_zombies(box: Box) -> None:
    """At a limit of processes every fork fails once they are too many."""
    payloads = ["leave"] * 20 + ["count"]
    command = ["run", f"{JOBS}/harsh.py:leaves_orphans", "--tasks", box.tasks(payloads)]
    box.run(*command, "--spool", "S", program=unshare("--pid", "--mount-proc"))
    assert [result["result"] for result in assert_sound(box, "S", 21)] == [0] * 21


# A shell ignores SIGINT for what it runs in the background.
IGNORING = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")


@pytest.mark.parametrize(
    ("number", "starter"),
    [(signal.SIGTERM, ()), (signal.SIGINT, ()), (signal.SIGINT, IGNORING)],
    ids=["SIGTERM", "SIGINT", "SIGINT that is ignored"],
)
def test_process_1_of_a_container_passes_signals_on(
    box: Box, number: int, starter: tuple[str, ...]
) -> None:
    job = [f"{JOBS}/gates.py:gated_polite", "--tasks", box.tasks(["wait"] * 3)]
    command = ["run", *job, "--arg", f"gate={box / 'gate'}", "--spool", "S"]
    started = box.start(*command, program=(*starter, *unshare("--pid", "--mount-proc")))
    wait_until(lambda: waiting(box))
    kill(child_of(started.pid), number)
    done = started.wait(75)
    assert f"{signal.Signals(number).name} received" in done.err
    assert "twice" not in done.err


def test_process_1_ends_with_the_exit_code_of_the_command(box: Box) -> None:
    program = unshare("--pid", "--mount-proc")
    command = [
        "run",
        "--lines",
        box.lines(1),
        "--spool",
        "S",
        "--keep-going",
        "--",
        "false",
        "{input}",
    ]
    box.run(*command, program=program, code=3)
    box.run("status", "nowhere", program=program, code=2)


def test_a_proc_of_another_pid_namespace_is_refused_in_words(box: Box) -> None:
    program = unshare("--pid")
    done = box.run("run", "--lines", box.lines(1), "--", "true", "{input}", program=program, code=2)
    assert "/proc shows the processes of another pid namespace" in done.err
    assert "Traceback" not in done.err


def test_a_worker_in_another_time_namespace_is_not_proved_dead(box: Box) -> None:
    """The kernel shows start times shifted by the namespace of whoever looks."""
    unshare("--time", "--boottime", "100000")
    command = ["run", f"{JOBS}/gates.py:gated", "--tasks", box.tasks(["go", "wait"])]
    command += ["--arg", f"gate={box / 'gate'}", "--spool", "S"]
    shifted = ("unshare", "--time", "--boottime", "100000", "--fork", GPUSPOOL)
    started = box.start(*command, program=shifted)
    wait_until(lambda: waiting(box))
    os.kill(child_of(started.pid), signal.SIGKILL)
    started.process.wait()
    pid = identities(box / "S")["rank-0000.a00"]
    usage = json.loads((box / "S/usage/rank-0000.a00.jsonl").read_text().splitlines()[0])
    assert usage["idle_s"]["start"] < 100000, "the shift is no part of its age"
    resumed = box.start("resume", "S")
    wait_until(lambda: "rank-0000.a00" in resumed.err)
    assert "rank-0000.a00 outlived its parent and goes on" in resumed.err
    assert is_alive(pid)
    (box / "gate").touch()
    resumed.wait(0)
    assert_sound(box, "S", 2)
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]


@pytest.mark.parametrize("how", ["its time limit", "a kill"])
def test_a_run_inside_a_task_ends_with_that_task(box: Box, how: str) -> None:
    inner = [
        GPUSPOOL,
        "run",
        "--lines",
        box.lines(2),
        "--spool",
        "inner",
        "--",
        "sleep",
        "1000",
        "{{input}}",
        "{input}",
    ]
    options = (
        ["--task-timeout", "3s", "--keep-going"]
        if how == "its time limit"
        else ["--max-crashes", "1"]
    )
    outer = ["run", "--lines", box.lines(1, "one"), "--spool", "S", *options, "--", *inner]
    started = box.start(*outer)
    wait_until(lambda: (box / "inner").exists() and identities(box / "inner"))
    if how == "a kill":
        kill(identities(box / "S")["rank-0000.a00"], signal.SIGSEGV)
    started.wait(3)
    assert box.processes() == []
    assert box.status("inner")["tasks"]["failed"] == 0


def test_a_run_inside_a_task_leaves_the_outer_run_alone(box: Box) -> None:
    """It kills what its own attempts left, and the outer run's marks are no attempts of its own."""
    inner = [
        GPUSPOOL,
        "run",
        "--lines",
        box.lines(2),
        "--spool",
        "inner-{index}",
        "--",
        "true",
        "{{input}}",
    ]
    outer = ["run", "--lines", box.lines(3, "three"), "--spool", "S", "--ranks", "2", "--", *inner]
    box.run(*outer)
    assert_sound(box, "S", 3)
    for index in range(3):
        assert_sound(box, f"inner-{index}", 2)
