"""Tasks that take their worker along are found, told in detail, and cost no other task.

And a run with many failures stops early.
"""

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from helpers import JOBS, Box, assert_sound, names, record, start_gated, wait_until, waiting

from gpuspool.orchestrator.supervise.drain import most_failed
from gpuspool.spool.exits import signal_of
from gpuspool.spool.oom import OomWatch, find_counter


def test_a_task_that_crashes_its_worker_is_told_with_all_that_is_known(box: Box) -> None:
    payloads = ["go"] * 8
    payloads[3] = "segv"
    box.run(
        "run", f"{JOBS}/gates.py:Segfault", "--tasks", box.tasks(payloads), "--spool", "S", code=3
    )
    error = box.results("S")[3]["error"]
    assert (error["kind"], error["type"], error["signal"], error["exit_code"]) == (
        "lost",
        "WorkerLost",
        "SIGSEGV",
        -11,
    )
    assert (error["rank"], error["device"], error["host"]) == (0, "cpu", os.uname().nodename)
    first, second = error["attempts"]
    assert first == "rank-0000.a01" < second, "those in which it was alone"
    assert "Segmentation fault" in error["log_tail"]
    assert error == record(box / "S" / "failed-tasks" / "t3.json")["error"]


@pytest.mark.parametrize("job", ["out_of_descriptors", "breaks_its_device"])
def test_a_task_that_makes_its_process_unusable_fails_and_the_next_process_goes_on(
    box: Box, job: str
) -> None:
    """Without this every later task of that process would fail too."""
    payloads = ["a", "b", "bad", "d", "e", "f"]
    box.run("run", f"{JOBS}/harsh.py:{job}", "--tasks", box.tasks(payloads), "--spool", "S", code=3)
    results = box.results("S")
    assert [result["key"] for result in results if result["state"] != "complete"] == ["t2"]
    error = results[2]["error"]
    assert (error["type"], error["exit_code"]) == ("WorkerLost", 76)
    assert "it could run nothing more: " in error["message"]
    assert f"in {job}" in error["log_tail"]
    assert box.problems("S") == []


def test_what_was_done_before_a_process_became_unusable_is_not_done_again(box: Box) -> None:
    """This holds for the last of many tiny tasks too, whose lines wait for each other."""
    box.write(
        "job.py",
        """
import errno, os
def f(task, ctx):
    fd = os.open(ctx.args["notes"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{task.index}\\n".encode())
    os.close(fd)
    if task.index == 150:
        raise OSError(errno.EMFILE, "no more descriptors")
""",
    )
    notes = box / "notes"
    box.run(
        "run",
        "job.py:f",
        "--lines",
        box.lines(200),
        "--spool",
        "S",
        "--arg",
        f"notes={notes}",
        code=3,
    )
    counts = Counter(map(int, notes.read_text().split()))
    assert counts.pop(150) > 1
    assert counts == Counter(set(range(200)) - {150})


def test_too_many_failures_stop_a_run_early(box: Box) -> None:
    """Unhindered the tasks would take half a minute."""
    count = 600
    payloads = ["bad", "bad", *["go"] * (count - 2)]
    options = ["--keep-going", "--max-failed", "2"]
    started, command = start_gated(box, payloads, *options, job="slow_without_gate")
    done = started.wait(4)
    assert "--max-failed 2: workers finish the tasks in hand" in done.err
    early = re.search(
        r"stopped early, since --max-failed is reached: (\d+) of 600 tasks complete, 2 failed",
        done.err,
    )
    assert early is not None
    assert int(early[1]) < count - 2
    assert record(box / "S" / "summary.json")["how"] == "too many failed"
    (box / "gate").touch()
    assert "2 failed" in box.run(*command, *options, code=4).err, "they have failed for good"
    box.run(*command, "--max-failed", "50%", code=3)
    assert [result["state"] for result in box.results("S")].count("complete") == count - 2


@pytest.mark.parametrize(
    ("text", "most"), [(None, None), ("3", 3), ("10%", 20), ("0.1%", 1), ("100%", 200)]
)
def test_a_share_of_failures_is_one_of_all_tasks(text: str | None, most: int | None) -> None:
    assert most_failed(text, 200) == most


@pytest.mark.parametrize("text", ["0", "-1", "x", "5 %", "%", "1.5"])
def test_a_limit_of_failures_that_makes_no_sense_is_refused(box: Box, text: str) -> None:
    done = box.run(
        "run", f"{JOBS}/plain.py:double", "--lines", box.lines(1), f"--max-failed={text}", code=2
    )
    assert f"--max-failed {text} is not possible" in done.err
    assert not (box / "spool-double").exists()


@pytest.mark.parametrize(
    ("code", "name"), [(-9, "SIGKILL"), (139, "SIGSEGV"), (3, ""), (0, ""), (-99, "signal 99")]
)
def test_a_signal_is_told_however_it_came_as_an_exit_code(code: int, name: str) -> None:
    assert signal_of(code) == name


# Whether the kernel's out-of-memory killer did it.


def counter(folder: Path, name: str, kills: int) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
    return path


def test_the_counter_is_that_of_the_jobs_own_cgroup(tmp_path: Path) -> None:
    one = counter(tmp_path, "memory/slurm/job_7/memory.oom_control", 0)
    two = counter(tmp_path, "slurm/job_7/memory.events", 0)
    unified = counter(tmp_path, "unified/slurm/job_8/memory.events", 0)
    assert find_counter("4:memory:/slurm/job_7\n1:cpu:/\n", tmp_path) == one
    assert find_counter("0::/slurm/job_7\n", tmp_path) == two
    assert find_counter("1:cpu:/\n0::/slurm/job_8\n", tmp_path) == unified
    assert find_counter("0::/elsewhere\n", tmp_path) == Path("/proc/vmstat")
    assert find_counter("", tmp_path) == Path("/proc/vmstat")


def test_a_kill_by_the_kernel_explains_one_death_and_not_for_ever(tmp_path: Path) -> None:
    path = counter(tmp_path, "events", 3)
    watch = OomWatch(path)
    assert not watch.explains(-signal.SIGKILL, 0.0)
    counter(tmp_path, "events", 5)
    assert not watch.explains(-signal.SIGSEGV, 1.0)
    assert watch.explains(-signal.SIGKILL, 1.0)
    assert watch.explains(137, 2.0)
    assert not watch.explains(-signal.SIGKILL, 2.0)
    counter(tmp_path, "events", 6)
    watch.look(3.0)
    assert not watch.explains(-signal.SIGKILL, 60.0), "that was a child of the job, long ago"
    path.unlink()
    assert not watch.explains(-signal.SIGKILL, 61.0)


def test_nothing_of_a_kill_from_outside_is_taken_for_memory(box: Box) -> None:
    payloads = ["go", "once", "go"]
    command = [
        "run",
        f"{JOBS}/gates.py:dies",
        "--tasks",
        box.tasks(payloads),
        "--arg",
        f"gate={box / 'gate'}",
    ]
    box.run(*command, "--spool", "S")
    assert_sound(box, "S", 3)
    assert record(box / "S" / "failed" / names(box / "S" / "failed")[0])["reason"] == "crash"


def test_where_memory_runs_out_a_worker_is_a_better_victim_than_its_parent(box: Box) -> None:
    started, _ = start_gated(box, ["wait"])
    wait_until(lambda: waiting(box))
    worker = int((box / "gate.waiting").read_text().split()[1])
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (started.pid, worker)]
    assert scores[1] == min(scores[0] + 300, 1000)
    (box / "gate").touch()
    started.wait(0)
