"""What jobs leave behind: no process outlives its run, whatever session it fled to; nor its parent,
if so asked.
"""

import os
import signal
from pathlib import Path

import pytest
from helpers import (
    JOBS,
    Box,
    assert_sound,
    identities,
    is_alive,
    journal_lines,
    names,
    record,
    start_gated,
    wait_until,
    waiting,
)

from gpuspool.spool import processes
from gpuspool.spool.open_folder import folder_id
from gpuspool.spool.processes import MARK, kill_marked, mark_of, run_mark


def children(box: Box) -> list[int]:
    path = box / "children"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_a_child_in_a_session_of_its_own_does_not_outlive_the_run(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/harsh.py:leaves_a_daemon",
        "--tasks",
        box.tasks(["a", "b"]),
        "--spool",
        "S",
    ]
    box.run(*command, "--arg", f"children={box / 'children'}")
    assert len(children(box)) == 2
    assert not any(map(is_alive, children(box)))
    assert box.processes() == []


def test_what_a_worker_that_died_left_is_gone_before_the_next_begins(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/harsh.py:leaves_a_daemon",
        "--tasks",
        box.tasks(["die"]),
        "--spool",
        "S",
    ]
    done = box.run(*command, "--arg", f"children={box / 'children'}", code=3)
    assert "killed by SIGKILL" in done.err
    assert len(children(box)) == 5
    assert box.processes() == []


TITLED = """
import os, subprocess, sys, time
HIDE = '''
import ctypes, os, re, sys, time
# As setproctitle does: the kernel shows this memory as the environment.
begin, end = [int(text) for text in open("/proc/self/stat").read().split()[49:51]]
ctypes.memset(begin, 0, end - begin)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(1000)
'''
def job(task, ctx):
    child = ctx.args["child"]
    if os.path.exists(child):
        return "again"
    subprocess.Popen([sys.executable, "-c", HIDE, child + ".new"], start_new_session=True)
    while not os.path.exists(child + ".new") or not open(child + ".new").read():
        time.sleep(0.01)
    os.rename(child + ".new", child)
    time.sleep(1000)
"""


def test_a_child_without_a_readable_environment_is_gone_when_the_next_start_begins(
    box: Box,
) -> None:
    """vLLM's processes are such children: they would keep the memory of the GPU."""
    box.write("job.py", TITLED)
    child = box / "child"
    command = ["run", "job.py:job", "--lines", box.lines(1), "--arg", f"child={child}"]
    started = box.start(*command, "--spool", "S")
    wait_until(child.exists)
    pid = int(child.read_text())
    # Only the worker and its parent are found by the environment.
    box.kill_all()
    started.wait(-signal.SIGKILL)
    try:
        assert is_alive(pid)
        assert MARK.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        box.run(*command, "--spool", "S")
        assert not is_alive(pid)
        assert [one["result"] for one in box.results("S")] == ["again"]
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("how", "left"), [("returns", 0), ("exits", 7), ("raises", 1)])
def test_a_forked_child_that_comes_back_from_the_job_is_no_second_worker(
    box: Box, how: str, left: int
) -> None:
    """It would run the rest of the claim, account for it, and at its end kill the worker as a
    stray.
    """
    command = [
        "run",
        f"{JOBS}/harsh.py:forks",
        "--tasks",
        box.tasks([how] * 3),
        "--spool",
        "S",
        "--ranks",
        "1",
    ]
    box.run(*command)
    assert [result["result"] for result in assert_sound(box, "S", 3)] == [left] * 3
    assert len(journal_lines(box / "S")) == 3, "one for each task"
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]
    assert (
        "ValueError: in the child" in (box / "S" / "logs" / "rank-0000.a00.log").read_text()
    ) == (how == "raises")


def test_a_forked_process_can_be_ended_by_a_signal(box: Box) -> None:
    """It inherits the worker's handler, which answers with a drain.

    So a pool of such processes would never end.
    """
    command = [
        "run",
        f"{JOBS}/harsh.py:ends_a_forked_process",
        "--lines",
        box.lines(30),
        "--spool",
        "S",
    ]
    box.run(*command)
    assert {result["result"] for result in assert_sound(box, "S", 30)} == {-signal.SIGTERM}


def test_a_job_may_keep_a_pool_of_processes_to_its_end(box: Box) -> None:
    """Who kills the pool's processes before the pool ends them has a worker that must be killed."""
    command = [
        "run",
        f"{JOBS}/harsh.py:KeepsAPool",
        "--lines",
        box.lines(4),
        "--spool",
        "S",
        "--ranks",
        "2",
    ]
    box.run(*command, "--arg", f"exits={box / 'exits'}")
    assert_sound(box, "S", 4)
    assert len((box / "exits").read_text().split()) == 2
    assert box.processes() == []


def test_a_thread_that_waits_for_a_process_of_the_job_does_not_keep_a_worker(box: Box) -> None:
    """It ends by itself; who lingers is killed before its exit handlers."""
    command = [
        "run",
        f"{JOBS}/harsh.py:LeavesWaiters",
        "--lines",
        box.lines(4),
        "--spool",
        "S",
        "--ranks",
        "2",
    ]
    box.run(*command, "--arg", f"exits={box / 'exits'}")
    assert_sound(box, "S", 4)
    assert len((box / "exits").read_text().split()) == 2
    assert box.processes() == []


def test_what_a_copy_of_a_spool_started_is_told_from_what_the_spool_did(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    mark = run_mark("run", folder_id(tmp_path / "a"))
    assert run_mark("run", folder_id(tmp_path / "b")) != mark
    (tmp_path / "a").rename(tmp_path / "c")
    assert run_mark("run", folder_id(tmp_path / "c")) == mark


def test_only_what_the_named_attempts_started_is_killed(box: Box) -> None:
    run = os.urandom(8).hex()
    sleepers = [
        box.start("1000", program=("sleep",), env={MARK: mark_of(*mark)})
        for mark in [(run, "rank-0000.a00"), (run, "rank-0000.a01"), ("another", "rank-0000.a00")]
    ]
    wait_until(lambda: len(box.processes()) == 3)
    assert kill_marked(run, {"rank-0000.a00"}, spare=()) == 1
    sleepers[0].wait(-signal.SIGKILL)
    assert kill_marked(run, {"rank-0000.a01"}, spare=(sleepers[1].pid,)) == 0
    assert not sleepers[1].is_over()
    assert not sleepers[2].is_over()
    box.kill_all()


def test_folders_of_other_runs_are_not_looked_at(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be on a file system that is gone, and whoever looks at one hangs for good."""
    for name in ("ours", "others"):
        (box / name / "logs").mkdir(parents=True)
    ours, others = ("rank-0000.a00", "rank-0007.a00")
    sleepers = []
    for name, attempt in (("ours", ours), ("others", others)):
        log = box / name / "logs" / f"{attempt}.log"
        command = ["-c", f"exec sleep 1000 >{log} 2>&1"]
        sleepers.append(box.start(*command, program=("bash",)))
        wait_until(log.exists)
    asked = []

    def folder_of(path: Path) -> str:
        asked.append(path)
        return folder_id(path)

    monkeypatch.setattr(processes, "folder_id", folder_of)
    assert kill_marked(run_mark("run", folder_id(box / "ours")), {ours}) == 1
    sleepers[0].wait(-signal.SIGKILL)
    assert not sleepers[1].is_over()
    # Beside this test others have runs of their own.
    assert {path for path in asked if box.home in path.parents} == {box / "ours"}
    box.kill_all()


def test_workers_stop_without_their_parent_where_they_were_told_to(box: Box) -> None:
    started, command = start_gated(box, ["wait", "go", "go"], "--on-parent-exit", "stop")
    wait_until(lambda: waiting(box))
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    pid = identities(box / "S")["rank-0000.a00"]
    (box / "gate").touch()
    wait_until(lambda: not is_alive(pid))
    closing = record(box / "S" / "stopped" / "rank-0000.a00.json")
    assert (closing["reason"], closing["by"]) == ("drained", "rank-0000.a00")
    box.run(*command)
    assert_sound(box, "S", 3)


def test_a_worker_whose_parent_is_gone_takes_its_children_along(box: Box) -> None:
    box.write("job.py", (JOBS / "harsh.py").read_text())
    box.write("plain.py", (JOBS / "plain.py").read_text())
    (box / "job.py").write_text(
        (box / "job.py").read_text()
        + "\n\ndef waits(task, ctx):\n    leaves_a_daemon(task, ctx)\n"
        + "    while not Path(ctx.args['gate']).exists():\n        time.sleep(0.004)\n"
    )
    command = ["run", "job.py:waits", "--tasks", box.tasks(["a"]), "--spool", "S"]
    started = box.start(
        *command, "--arg", f"children={box / 'children'}", "--arg", f"gate={box / 'gate'}"
    )
    wait_until(lambda: children(box))
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    (box / "gate").touch()
    wait_until(lambda: names(box / "S" / "complete") and not box.processes())
    assert len(journal_lines(box / "S")) == 1


def test_a_child_without_any_environment_does_not_outlive_the_run(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/harsh.py:leaves_a_bare_child",
        "--tasks",
        box.tasks(["a", "b"]),
        "--spool",
        "S",
    ]
    box.run(*command, "--arg", f"children={box / 'children'}")
    assert len(children(box)) == 2
    assert not any(map(is_alive, children(box)))
