"""Limits of a process (`ulimit`) are told as what they are, and cost no innocent task."""

from typing import Any

from helpers import GPUSPOOL, JOBS, Box, Done, assert_sound, names


def run_limited(box: Box, ulimit: str, job: str, payloads: list[str], code: int = 0) -> Done:
    """Run a job of harsh.py with one rank, below `ulimit`."""
    command = ["run", f"{JOBS}/harsh.py:{job}", "--tasks", box.tasks(payloads), "--spool", "S"]
    command += ["--ranks", "1", "--arg", f"mine={box / 'mine'}"]
    program = ("bash", "-c", f'ulimit {ulimit} && exec "$0" "$@"', GPUSPOOL)
    return box.run(*command, program=program, code=code)


def attempts(box: Box) -> int:
    return len(names(box / "S" / "attempts"))


def test_a_log_as_large_as_a_file_may_be_fails_nobody(box: Box) -> None:
    done = run_limited(box, "-f 150", "prints_much", ["a"] * 20)
    assert "the log is as large as a file may be: 153600 bytes (ulimit -f)" in done.err
    assert_sound(box, "S", 20)
    assert attempts(box) > 1


def test_cpu_time_that_earlier_tasks_used_up_fails_nobody(box: Box) -> None:
    done = run_limited(box, "-t 2", "burns", ["a"] * 7)
    assert "reached its limit on CPU time, ulimit -t" in done.err
    assert_sound(box, "S", 7)


def test_memory_that_earlier_tasks_kept_fails_nobody_but_who_asks_for_too_much(box: Box) -> None:
    payloads = ["a"] * 20
    payloads[2] = "bad"
    done = run_limited(box, "-v 700000", "keeps_memory", payloads, code=3)
    assert "bytes of address space (ulimit -v)" in done.err
    failed = [result for result in box.results("S") if result["state"] != "complete"]
    assert [(result["index"], result["error"]["kind"]) for result in failed] == [(2, "host_oom")]


def test_descriptors_that_earlier_tasks_kept_fail_nobody(box: Box) -> None:
    run_limited(box, "-n 80", "keeps_files", ["a"] * 30)
    assert_sound(box, "S", 30)


def test_a_task_that_closes_our_files_fails_and_the_run_ends(box: Box) -> None:
    """Before, no worker could say how it ended, and the run never came past this task."""
    done = run_limited(box, "-n 4096", "closes_files_of_others", ["a"] * 5 + ["bad"] + ["b"] * 5, 3)
    states: list[Any] = [result["state"] for result in box.results("S")]
    assert [index for index, state in enumerate(states) if state != "complete"] == [5]
    assert "it could run nothing more: the job closed files that are not its own" in done.err
    logs = [path.read_text() for path in (box / "S" / "logs").iterdir()]
    assert any("the job closed files that are not its own" in log for log in logs)
    assert (box / "mine").read_bytes() == b"", "nothing of ours stands in it"


def test_a_job_that_closes_low_descriptors_harms_nobody(box: Box) -> None:
    run_limited(box, "-n 4096", "closes_low_files", ["a"] * 10)
    assert_sound(box, "S", 10)
    assert attempts(box) == 1
    assert (box / "mine").read_bytes() == b""
