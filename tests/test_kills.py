"""SIGKILL of anything at any moment, and the same command again: each result is there once.

And each output is whole. The moments are random but chosen by progress, never by a clock: "when so
many lines are in the journals", "when the spool appears". A seed that fails fails again with the
same victim at the same kind of moment.
"""

import random
import re
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    JOBS,
    Box,
    Started,
    assert_sound,
    count_lines,
    journal_lines,
    kill,
    names,
    record,
    wait_until,
)

TASKS = 48
# How many rounds each test plays. With the seeds and victims below that makes 36 in all.
ROUNDS = 3
EARLY_AND_LATE = (
    "building",
    "spool",
    "attempts",
    "heartbeat",
    "journal",
    "complete",
    "summary.json",
)


def random_moment(box: Box, rng: random.Random) -> Callable[[], bool]:
    """A condition: mostly a count of journal lines, sometimes the appearance of something."""
    spool = box / "S"
    if rng.random() < 0.75:
        lines = rng.randrange(1, TASKS + 3)
        return lambda: count_lines(spool) >= lines
    what = rng.choice(EARLY_AND_LATE)
    if what == "building":
        return lambda: any(
            path.name.startswith(".S.") or path.name == "S" for path in box.home.iterdir()
        )
    if what in ("spool", "summary.json"):
        return (spool if what == "spool" else spool / what).exists
    return lambda: bool(names(spool / what))


def strike(box: Box, started: Started, victim: str, rng: random.Random) -> None:
    """Kill the victim, if it lives."""
    if victim == "all":
        box.kill_all()
    elif victim == "parent":
        started.signal(signal.SIGKILL)
    else:
        workers = wait_until(
            lambda: [pid for pid in box.processes() if pid != started.pid] or started.is_over()
        )
        if isinstance(workers, list):
            kill(rng.choice(workers))


def executions(box: Box) -> list[tuple[int, str]]:
    """(task, nonce) of all that began, in order."""
    path = box / "notes"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(index), nonce) for index, nonce in map(str.split, lines)]


def check_outputs(box: Box, results: list[Any]) -> None:
    """Each output must be there once, whole, and written by an execution of its task.

    That is the execution that the result names. If the worker died between publishing and
    journaling, it is an earlier one.
    """
    outputs = box / "S" / "outputs"
    assert sorted(path.name for path in outputs.iterdir() if path.name != ".gpuspool") == sorted(
        f"t{index}.txt" for index in range(TASKS)
    )
    began = executions(box)
    for result in results:
        *lines, digest = (outputs / f"t{result['index']}.txt").read_text().splitlines(keepends=True)
        nonce = lines[0].split()[1]
        assert lines == [f"{result['key']} {nonce}\n"] * 200
        assert digest == f"{sha256(''.join(lines).encode()).hexdigest()}\n"
        of_task = [nonce for index, nonce in began if index == result["index"]]
        assert nonce in of_task
        assert result["result"] in of_task
        assert nonce == result["result"] or len(of_task) > 1


def play_round(box: Box, victim: str, rng: random.Random) -> None:
    """Start, kill at a random moment (sometimes twice), and repeat the command to the exact end."""
    job = rng.choice(["output", "Batches"])
    command: list[str | Path] = [
        "run",
        f"{JOBS}/tracked.py:{job}",
        "--lines",
        box.lines(TASKS),
        "--spool",
        "S",
    ]
    command += ["--ranks", "2", "--arg", f"notes={box / 'notes'}"]
    for _ in range(rng.choice([1, 1, 2])):
        started = box.start(*command)
        is_time = random_moment(box, rng)
        # The condition is only asked within this round, so it may use the loop's variables.
        wait_until(lambda: is_time() or started.is_over(), poll=0.001)  # noqa: B023
        strike(box, started, victim, rng)
        done = started.wait()
        assert done.code == 0 if victim == "worker" else done.code in (0, -signal.SIGKILL), done.err
        journaled, began = {line["task"] for line in journal_lines(box / "S")}, len(executions(box))
        if victim == "all":
            assert not box.processes()
    box.run(*command)
    check_outputs(box, assert_sound(box, "S", TASKS))
    lines = [line["task"] for line in journal_lines(box / "S")]
    assert sorted(lines) == list(range(TASKS)), "each task is journaled once"
    if victim == "all":
        again = {index for index, _ in executions(box)[began:]}
        assert not again & journaled, "a task with a journaled result ran again"
    wait_until(lambda: not box.processes())
    hidden = [path for path in (box / "S").rglob(".*") if path.name != ".gpuspool"]
    assert hidden == [], "what the dead left unfinished is cleaned up"


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("victim", ["worker", "parent", "all"])
def test_killed_at_a_random_moment(tmp_path: Path, victim: str, seed: int) -> None:
    rng = random.Random(f"{victim} {seed}")
    for number in range(ROUNDS):
        home = tmp_path / f"round-{number}"
        home.mkdir()
        box = Box(home)
        try:
            play_round(box, victim, rng)
        finally:
            box.kill_all()


def test_ten_thousand_tasks_all_killed_half_way(box: Box) -> None:
    count = 10_000
    command = [
        "run",
        f"{JOBS}/plain.py:noted",
        "--lines",
        box.lines(count),
        "--ranks",
        "2",
        "--spool",
        "S",
    ]
    command += ["--arg", f"notes={box / 'notes'}"]
    started = box.start(*command)
    wait_until(lambda: count_lines(box / "S") > count / 2)
    box.kill_all()
    started.wait(-signal.SIGKILL)
    journaled = {line["task"] for line in journal_lines(box / "S")}
    assert count / 2 <= len(journaled) < count
    began = (box / "notes").read_text().split()
    box.run(*command)
    assert [result["result"] for result in assert_sound(box, "S", count)] == list(range(count))
    again = set(map(int, (box / "notes").read_text().split()[len(began) :]))
    assert not again & journaled
    assert f"0 problems; {count} complete, 0 failed of {count}" in box.run("verify", "S").out


def test_a_segmentation_fault_costs_its_task_alone(box: Box) -> None:
    """All 32 of the batch are suspect at first; run one by one, they name the culprit."""
    payloads = [f"p{i}" for i in range(32)]
    payloads[20] = "segv"
    done = box.run(
        "run", f"{JOBS}/gates.py:Segfault", "--tasks", box.tasks(payloads), "--spool", "S", code=3
    )
    assert "31 of 32 tasks complete, 1 failed" in done.err
    results = box.results("S")
    assert [result["index"] for result in results if result["state"] != "complete"] == [20]
    error = results[20]["error"]
    assert (error["kind"], error["type"]) == ("lost", "WorkerLost")
    assert "the worker died with this task in hand: killed by SIGSEGV" in error["message"]
    assert error["tries"] == len(error["attempts"]) == 2, "each time alone in its worker"
    assert record(box / "S" / "failed-tasks" / "t20.json")["error"]["type"] == "WorkerLost"
    assert {
        record(box / "S" / "failed" / name)["exit_code"] for name in names(box / "S" / "failed")
    } == {-11}
    assert box.problems("S") == []


def test_other_ranks_go_on_while_one_crashes_again_and_again(box: Box) -> None:
    payloads = ["go"] * 30
    payloads[3] = "always"
    command = [
        "run",
        f"{JOBS}/gates.py:dies",
        "--tasks",
        box.tasks(payloads),
        "--arg",
        f"gate={box / 'gate'}",
    ]
    done = box.run(*command, "--ranks", "2", "--spool", "S", code=3)
    assert "29 of 30 tasks complete, 1 failed" in done.err
    error = box.results("S")[3]["error"]
    assert error["type"] == "WorkerLost"
    assert "SIGKILL" in error["message"]
    assert error["tries"] == 5, "a kill often comes from outside: more patience than with a crash"


def test_a_worker_that_dies_is_restarted_and_nobody_is_blamed(box: Box) -> None:
    payloads = ["go", "go", "once", *["go"] * 10]
    command = [
        "run",
        f"{JOBS}/gates.py:dies",
        "--tasks",
        box.tasks(payloads),
        "--arg",
        f"gate={box / 'gate'}",
    ]
    done = box.run(*command, "--spool", "S")
    told = "rank-0000.a00 ended: killed by SIGKILL (t2 in hand); what it had not finished is given"
    assert told in done.err
    assert_sound(box, "S", len(payloads))
    closing = record(box / "S" / "failed" / "rank-0000.a00.json")
    assert (closing["reason"], closing["exit_code"], closing["by"]) == ("crash", -9, "parent")
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json", "rank-0000.a01.json"]


def test_a_worker_that_dies_in_a_batch_names_no_task_since_it_may_be_any_of_them(box: Box) -> None:
    tasks = box.tasks(["a", "segv", "c", "d"])
    command = ["run", f"{JOBS}/gates.py:Segfault", "--tasks", tasks, "--ranks", "1", "--spool", "S"]
    done = box.run(*command, code=3)
    ends = re.findall(r"rank-0000\.a0\d ended: killed by SIGSEGV[^;]*; what", done.err)
    assert "in hand" not in ends[0], done.err
    assert "(t1 in hand)" in ends[-1], done.err


def test_a_job_that_kills_every_worker_at_its_start_ends_the_run(box: Box) -> None:
    box.write("job.py", "import os\nos._exit(9)\ndef job(task, ctx): pass\n")
    command = [
        "run",
        "job.py:job",
        "--lines",
        box.lines(3),
        "--spool",
        "S",
        "--ranks",
        "2",
        "--max-restarts",
        "0",
    ]
    done = box.run(*command, code=4)
    assert "every rank failed too often" in done.err
    assert "logs/rank-000" in done.err
    assert box.status("S")["tasks"] == {
        "total": 3,
        "complete": 0,
        "failed": 0,
        "running": 0,
        "waiting": 3,
    }
    assert box.problems("S") == []
