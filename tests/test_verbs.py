"""The verbs that look at a spool, in the middle of a run and afterwards; retry; and the same from
ls and grep.
"""

import os
import re
import signal
from pathlib import Path

import pytest
from helpers import (
    GPUSPOOL,
    JOBS,
    Box,
    Started,
    assert_sound,
    half_done,
    identities,
    journal_lines,
    names,
    record,
    start_gated,
    wait_until,
    waiting,
)

# Between the failure and the gate the ranks have work for longer than the failure waits before it
# is a verdict: a worker looks for that only between two calls.
PAYLOADS = ["go", "go", "bad", *["slow"] * 7, "wait", "wait"]


def middle_of_a_run(box: Box) -> tuple[Started, list[str | Path]]:
    """12 tasks on 2 ranks: 9 are complete, 1 failed, 2 wait at the gate. Heartbeats come often."""
    started, command = start_gated(box, PAYLOADS, "--ranks", "2", "--lease", "1.2s", "--keep-going")
    wait_until(lambda: len(waiting(box)) == 2 and len(journal_lines(box / "S")) == 10)
    return started, command


def shell(box: Box, command: str) -> list[str]:
    return box.run(
        "-c", command, program=("bash",), env={"SPOOL": "S", "LC_ALL": "C"}
    ).out.splitlines()


def test_status_in_the_middle_of_a_run(box: Box) -> None:
    started, _ = middle_of_a_run(box)
    # A heartbeat may still tell of the task before.
    wait_until(lambda: {row["task"] for row in box.status("S")["ranks"]} == {10, 11})
    told = box.run("status", "--json", "S").record()
    assert told["schema_version"] == 2
    assert told["state"] == "running"
    assert told["tasks"] == {"total": 12, "complete": 9, "failed": 1, "running": 2, "waiting": 0}
    assert told["spool"] == str(box / "S")
    [parent] = told["parents"]
    assert (parent["host"], parent["pid"]) == (os.uname().nodename, started.pid)
    assert (parent["state"], parent["command"]) == ("live", "run")
    assert parent["slots"] == ["cpu", "cpu"]
    pids = identities(box / "S")
    for rank, row in enumerate(told["ranks"]):
        assert {
            "rank",
            "attempt",
            "state",
            "device",
            "host",
            "pid",
            "task",
            "beat_age_s",
            "done",
            "failed",
        } <= set(row)
        assert (row["rank"], row["attempt"], row["state"]) == (
            rank,
            f"rank-{rank:04d}.a00",
            "running",
        )
        assert (row["device"], row["host"]) == ("cpu", os.uname().nodename)
        assert row["pid"] == pids[row["attempt"]]
        assert row["beat_age_s"] >= 0
    assert {row["task"] for row in told["ranks"]} == {10, 11}
    assert sum(row["done"] for row in told["ranks"]) == 9
    assert sum(row["failed"] for row in told["ranks"]) == 1
    text = box.run("status", "S").out
    assert "gated  running  83 % after 0:" in text
    assert "\n9 complete, 1 failed, 2 running, 0 waiting of 12" in text
    (box / "gate").touch()
    started.wait(3)
    after = box.run("status", "--json", "S").record()
    assert after["state"] == "failed"
    assert after["tasks"] == {"total": 12, "complete": 11, "failed": 1, "running": 0, "waiting": 0}
    assert {row["state"] for row in after["ranks"]} == {"complete"}
    assert {row["task"] for row in after["ranks"]} == {None}
    watched = box.run("status", "S", "--watch").out
    assert watched.startswith("finished, 1 failed  100 % in 0:")


def test_the_readmes_questions_in_the_middle_of_a_run(box: Box) -> None:
    started, _ = middle_of_a_run(box)
    attempts = ["rank-0000.a00.json", "rank-0001.a00.json"]
    counts = shell(box, """grep -c '"state":"complete"' $SPOOL/journal/*""")
    assert [line.partition(":")[0] for line in counts] == [
        f"S/journal/{name}l" for name in attempts
    ]
    assert sum(int(line.partition(":")[2]) for line in counts) == 9
    assert shell(box, "comm -23 <(ls $SPOOL/attempts) <(ls $SPOOL/complete)") == attempts
    assert shell(box, "ls $SPOOL/failed-tasks") == ["t2.json"]
    assert record(box / "S" / "failed-tasks" / "t2.json")["error"]["message"] == "t2 is bad"
    assert shell(box, "cat $SPOOL/heartbeat/rank-*")[0].startswith("{")
    assert shell(box, """grep -o '"tasks": *[0-9]*' $SPOOL/run.json | grep -o '[0-9]*'""") == ["12"]
    (box / "gate").touch()
    started.wait(3)
    counts = shell(box, """grep -c '"state":"complete"' $SPOOL/journal/*""")
    assert sum(int(line.partition(":")[2]) for line in counts) == 11
    assert shell(box, "comm -23 <(ls $SPOOL/attempts) <(ls $SPOOL/complete)") == []


def test_reading_a_live_run_changes_nothing_and_finds_nothing_wrong(box: Box) -> None:
    started, _ = middle_of_a_run(box)
    before = (
        names(box / "S" / "corrupt"),
        names(box / "S" / "manifests"),
        names(box / "S" / "claims"),
    )
    assert box.run("verify", "S").out.splitlines()[-1] == "0 problems; 9 complete, 1 failed of 12"
    results = box.run("results", "S").records()
    assert [result["state"] for result in results].count("missing") == 2
    assert [result["index"] for result in results] == list(range(12))
    assert results[10]["result"] is None
    assert "message: t2 is bad" in box.run("failed", "S").out
    assert (
        names(box / "S" / "corrupt"),
        names(box / "S" / "manifests"),
        names(box / "S" / "claims"),
    ) == before
    (box / "gate").touch()
    started.wait(3)


def test_wait_returns_when_the_run_has_ended(box: Box) -> None:
    started, _ = middle_of_a_run(box)
    assert "running" in box.run("wait", "S", "--timeout", "0.1s", code=4).out
    waiter = box.start("wait", "S")
    wait_until(lambda: waiter.pid in box.processes())
    assert not waiter.is_over()
    (box / "gate").touch()
    started.wait(3)
    assert "11 complete, 1 failed" in waiter.wait(3).out


def test_wait_on_what_is_complete_or_stopped_returns_at_once(box: Box) -> None:
    command = half_done(box)
    assert "stopped" in box.run("wait", "S", code=4).out
    box.run(*command)
    assert "complete" in box.run("wait", "S").out


def test_results_tell_each_task_in_input_order(box: Box) -> None:
    started, _ = middle_of_a_run(box)
    (box / "gate").touch()
    started.wait(3)
    results = box.run("results", "S").records()
    assert [result["index"] for result in results] == list(range(12))
    assert [result["result"] for result in results] == [
        None if text == "bad" else text for text in PAYLOADS
    ]
    for result in results:
        assert set(result) == {
            "index",
            "key",
            "state",
            "result",
            "error",
            "seconds",
            "rank",
            "attempt",
            "code",
            "outputs",
        }
    assert results[2]["state"] == "failed"
    assert results[2]["error"]["type"] == "ValueError"


def test_failed_lists_tasks_and_why(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/plain.py:fails_until_fixed",
        "--tasks",
        box.tasks(["bad", "good", "bad"]),
    ]
    box.run(*command, "--arg", "fixed=fixed", "--spool", "S", code=3)
    source = 'raise ValueError(f"{task.key} is bad")'
    line = (JOBS / "plain.py").read_text().partition(source)[0].count("\n") + 1
    assert box.run("failed", "S").out.splitlines() == [
        f"2 tasks: exception, ValueError at plain.py:{line}",
        "  such as: t0 is bad",
        "  | Traceback (most recent call last):",
        f'  |   File "{JOBS / "plain.py"}", line {line}, in fails_until_fixed',
        f"  |     {source}",
        "  | ValueError: t0 is bad",
        "    t0  #0  bad",
        "    t2  #2  bad",
        "  next: gpuspool explain S t0",
        "",
        "next: gpuspool retry S  # all of them again",
    ]
    found = box.run("failed", "S", "--json").records()
    assert [result["index"] for result in found] == [0, 2]
    assert found[1]["error"]["traceback"].endswith("ValueError: t2 is bad\n")
    kept = record(box / "S" / "failed-tasks" / "t2.json")
    assert (kept["key"], kept["error"]["traceback"]) == ("t2", found[1]["error"]["traceback"])
    done = box.run("logs", "S", "--task", "t1")
    assert done.out == ""
    assert "nothing is known that t1 printed; `gpuspool logs S` shows all there is" in done.err


def test_retry_gives_failed_tasks_another_round(box: Box) -> None:
    """Fixed by something outside the job: the failures of the first round are kept aside."""
    command = [
        "run",
        f"{JOBS}/plain.py:fails_until_fixed",
        "--tasks",
        box.tasks(["bad", "good", "bad"]),
    ]
    command += ["--arg", f"fixed={box / 'fixed'}", "--spool", "S"]
    box.run(*command, code=3)
    assert names(box / "S" / "failed-tasks") == ["t0.json", "t2.json"]
    box.run(*command, code=3)
    assert "2 failed tasks get another round" in box.run("retry", "S", code=3).err
    assert names(box / "S" / "failed-tasks") == ["round-0", "t0.json", "t2.json"]
    assert names(box / "S" / "failed-tasks" / "round-0") == ["t0.json", "t2.json"]
    assert record(box / "S" / "failed-tasks" / "t0.json")["round"] == 1
    (box / "fixed").touch()
    box.run("retry", "S")
    assert names(box / "S" / "failed-tasks") == ["round-0", "round-1"]
    assert [result["result"] for result in assert_sound(box, "S", 3)] == ["bad", "good", "bad"]
    assert "no task has failed, so none gets another round" in box.run("retry", "S").err
    assert box.run("failed", "S").out == ""
    assert [line["task"] for line in journal_lines(box / "S")].count(1) == 1, (
        "what was complete ran once"
    )


def test_retry_with_a_fixed_job(box: Box) -> None:
    plain = box.job("plain.py")
    command = [
        "run",
        "plain.py:fails_until_fixed",
        "--tasks",
        box.tasks(["bad", "good"]),
        "--arg",
        "fixed=fixed",
    ]
    box.run(*command, code=3)
    plain.write_text(
        plain.read_text().replace('task.payload == "bad" and', 'task.payload == "worse" and')
    )
    assert "--keep-done" in box.run("retry", code=2).err
    assert names(box / "spool-fails_until_fixed" / "failed-tasks") == ["t0.json"]
    box.run("retry", "--keep-done")
    assert_sound(box, "spool-fails_until_fixed", 2)
    box.run("retry")


def test_a_retry_that_is_killed_goes_on_as_a_retry(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/gates.py:gated",
        "--tasks",
        box.tasks(["bad", "go", "bad"]),
        "--spool",
        "S",
        "--keep-going",
    ]
    box.run(*command, "--arg", f"gate={box / 'gate'}", code=3)
    started = box.start("retry", "S")
    wait_until(lambda: "retry-01.jsonl" in names(box / "S" / "manifests"))
    box.kill_all()
    started.wait()
    box.run("resume", "S", code=3)
    assert {line["round"] for line in journal_lines(box / "S") if line["task"] != 1} == {0, 1}
    assert names(box / "S" / "manifests").count("retry-02.jsonl") == 0
    assert box.problems("S") == []


def test_verify_tells_people_and_programs(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(3), "--spool", "S")
    assert box.run("verify", "S").out == "0 problems; 3 complete, 0 failed of 3\n"
    assert box.run("verify", "S", "--json").record() == {"problems": [], "notes": []}


def test_the_only_spool_is_the_default(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(3))
    (box / "spool-nothing").mkdir()
    box.run("run", f"{JOBS}/plain.py:double", "--lines", "lines", "--fresh")
    assert (box / "spool-double.old-1").exists(), "set aside, and so not meant"
    for verb in ("status", "results", "verify", "failed", "logs", "wait", "resume", "retry"):
        box.run(verb)
    box.run("run", f"{JOBS}/plain.py:noisy", "--lines", "lines")
    done = box.run("results", code=2)
    assert "spool-double, spool-noisy" in done.err


def test_each_spool_has_a_line_also_one_that_cannot_be_read(box: Box) -> None:
    done = box.run("list")
    assert done.out == ""
    assert done.err.startswith("gpuspool: there is no ./spool-* here")
    assert box.run("list", "--json").record() == []
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(3))
    box.write("bad.py", "def raises(task, ctx): raise ValueError('bad')\n")
    box.run("run", "bad.py:raises", "--lines", "lines", "--keep-going", code=3)
    (box / "spool-notes").mkdir()
    (box / "spool-bad").mkdir()
    (box / "spool-bad" / "FORMAT").write_text("gpuspool 2\n")
    (box / "spool-new").mkdir()
    (box / "spool-new" / "FORMAT").write_text("gpuspool 9\n")
    lines = box.run("list").out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "state", "cannot", "complete", "cannot", "finished,"
    ]  # fmt: skip
    assert "spool-bad: run.json is missing" in lines[1]
    assert re.fullmatch(r"complete +100 % +0 +\d+ s ago  spool-double", lines[2])
    assert "spool-new" in lines[3]
    assert re.fullmatch(r"finished, 3 failed +100 % +3 +\d+ s ago  spool-raises", lines[4])
    told = box.run("list", "--json").record()
    assert [os.path.basename(run["spool"]) for run in told] == [
        "spool-bad", "spool-double", "spool-new", "spool-raises"
    ]  # fmt: skip
    assert told[1]["state"] == "complete"
    assert "is missing" in told[0]["error"]
    for words in (["status"], ["list", "."], ["list", str(box.home)]):
        again = box.run(*words).out.splitlines()
        assert [line.split()[-1] for line in again[2::2]] == ["spool-double", "spool-raises"]
    assert box.run("status", "--json").record()[1]["state"] == "complete"
    assert "Name one" in box.run("status", "--watch", code=2).err
    [_, line] = box.run("list", "spool-double").out.splitlines()
    assert line.endswith("spool-double")
    assert "is not a folder" in box.run("list", "nowhere", code=2).err
    assert "there is no ./spool-* in spool-notes" in box.run("list", "spool-notes").err


def test_a_reader_that_goes_away_is_not_an_error(box: Box) -> None:
    tasks = box.tasks(["x" * 300] * 2000)
    box.run("run", f"{JOBS}/odd.py:raises", "--tasks", tasks, "--spool", "S")
    done = box.run("-c", f"{GPUSPOOL} results S | head -1", program=("bash",))
    assert done.err == ""
    assert len(done.records()) == 1


@pytest.mark.parametrize(
    "verb", ["", "run", "resume", "status", "wait", "logs", "failed", "retry", "drain", "verify"]
)
def test_help_is_there_for_every_verb(box: Box, verb: str) -> None:
    assert box.run(*filter(None, [verb]), "--help").out.startswith("Usage: gpuspool")


def test_the_rows_add_up_to_the_headline_whatever_attempt_did_it(box: Box) -> None:
    source = (
        "import os\n"
        "def job(task, ctx):\n"
        "    number = int(task.payload)\n"
        "    if number % 4 == 3: raise ValueError(f'bad {number}')\n"
        "    if number == 6: os._exit(3)\n"
    )
    box.write("two.py", source)
    command = ["run", "two.py:job", "--lines", box.lines(20), "--ranks", "2", "--spool", "S"]

    def assert_sums(complete: int, failed: int) -> None:
        now = box.status("S")
        assert (now["tasks"]["complete"], now["tasks"]["failed"]) == (complete, failed)
        assert sum(row["done"] for row in now["ranks"]) == complete
        assert sum(row["failed"] for row in now["ranks"]) == failed

    box.run(*command, code=3)
    assert any(not row["attempt"].endswith(".a00") for row in box.status("S")["ranks"])
    assert_sums(14, 6)
    # What failed in an earlier round counts no more, whoever says so.
    box.run("retry", "S", "--keep-going", code=3)
    assert_sums(14, 6)
    box.write("two.py", "def job(task, ctx): pass\n")
    box.run("retry", "S", "--keep-done")
    assert_sums(20, 0)


def test_status_names_the_task_in_hand_by_its_key(box: Box) -> None:
    for name in ("a", "b"):
        box.write(f"in/{name}.txt", "")
    source = (
        "import os, time\n"
        "def job(task, ctx):\n"
        "    while not os.path.exists('gate'): time.sleep(0.01)\n"
    )
    box.write("waits.py", source)
    started = box.start("run", "waits.py:job", "in/*", "--ranks", "1", "--spool", "S")
    wait_until(lambda: (box / "S").exists() and box.status("S")["tasks"]["running"] == 1)
    [row] = box.status("S")["ranks"]
    assert (row["task"], row["key"]) in ((0, "a.txt"), (1, "b.txt"))
    assert f"  {row['key']}\n" in box.run("status", "S").out
    (box / "gate").touch()
    started.wait(0)


def test_status_tells_of_workers_whose_orchestrator_is_gone(box: Box) -> None:
    started, _ = middle_of_a_run(box)
    assert box.status("S")["left_alone"] == 0
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    wait_until(lambda: box.status("S")["left_alone"] == 2)
    text = box.run("status", "S").out
    assert "2 workers go on although what started them is gone: `gpuspool drain`" in text
    box.run("drain", "S")
    (box / "gate").touch()
    wait_until(lambda: not box.processes())
    assert "is gone" not in box.run("status", "S").out


def test_failed_says_where_tracebacks_are_and_what_has_no_verdict(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(4), "--spool", "fine")
    assert box.run("failed", "fine").err == "gpuspool: no task of fine has failed\n"
    box.write("bad.py", "def job(task, ctx): raise ValueError('bad')\n")
    command = ["run", "bad.py:job", "--lines", box.lines(40), "--ranks", "2", "--spool", "S"]
    box.run(*command, code=4)
    n_doubtful = box.status("S")["doubtful"]
    done = box.run("failed", "S")
    assert done.out == ""
    text = f"{n_doubtful} tasks have failed somewhere, with no verdict yet"
    [command] = re.findall(
        rf"gpuspool: {text}; `(gpuspool explain S '#\d+')` tells of one\n", done.err
    )
    assert box.status("S")["doubtful"] == n_doubtful
    assert "ValueError: bad" in box.run("logs", "S").out
    assert box.run("failed", "S", "--json").out == ""
    box.run("resume", "S", "--keep-going", code=3)
    done = box.run("failed", "S")
    assert done.err == "gpuspool: S/failed-tasks has a file about each\n"
    assert "ValueError: bad" in record(box / "S" / "failed-tasks" / "t0.json")["error"]["traceback"]


@pytest.mark.parametrize("verb", ["status", "wait", "logs", "failed", "results", "verify"])
def test_who_names_no_spool_is_told_which_one_was_taken(verb: str, box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(4))
    guessed = box.run(verb)
    named = box.run(verb, "spool-double")
    assert guessed.err == f"gpuspool: spool-double, the only spool here\n{named.err}"
    assert guessed.out == named.out


def test_results_are_json_whether_or_not_that_is_asked_for(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(4), "--spool", "S")
    assert box.run("results", "S", "--json").out == box.run("results", "S").out
