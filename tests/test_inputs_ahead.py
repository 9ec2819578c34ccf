"""Inputs that are loaded ahead: each task gets its own, few are kept, and loads that go wrong harm
nobody else.
"""

from pathlib import Path
from typing import Any

import pytest
from helpers import (
    JOBS,
    Box,
    assert_sound,
    limit,
    names,
    record,
    wait_until,
    wait_until_told_to_drain,
)

JOB = f"{JOBS}/loading.py"


def run_loading(box: Box, job: str, payloads: list[Any], *options: str, code: int = 0) -> list[Any]:
    """Runs a job of loading.py; returns the results."""
    box.run(
        "run", f"{JOB}:{job}", "--tasks", box.tasks(payloads), "--spool", "S", *options, code=code
    )
    assert box.problems("S") == []
    return box.results("S")


def stats(box: Box) -> list[Any]:
    return [
        record(box / "S" / "complete" / name)["stats"] for name in names(box / "S" / "complete")
    ]


def notes(box: Box) -> list[str]:
    path = box / "notes"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("job", ["Loads", "LoadsAlone"])
def test_each_task_gets_what_was_loaded_for_it(box: Box, job: str) -> None:
    results = run_loading(box, job, list(range(60)), "--ranks", "2")
    assert [result["result"]["of"] for result in results] == list(range(60))
    threads = {result["result"]["in"].rpartition("-")[0] for result in results}
    assert ("gpuspool-load" in threads) == (job == "Loads")


def test_batches_get_what_was_loaded_for_them(box: Box) -> None:
    results = run_loading(box, "LoadsBatches", list(range(42)))
    assert [result["result"][0] for result in results] == list(range(42))
    assert max(result["result"][1] for result in results) == 4


@pytest.mark.parametrize("job", ["Loads", "LoadsBatches", "LoadsAlone"])
def test_a_load_that_raises_fails_its_task_alone(box: Box, job: str) -> None:
    payloads = ["bad" if index in (0, 5, 6, 19) else index for index in range(20)]
    results = run_loading(box, job, payloads, code=3)
    failed = [result for result in results if result["state"] != "complete"]
    assert [result["index"] for result in failed] == [0, 5, 6, 19]
    error = failed[1]["error"]
    assert (error["kind"], error["type"], error["message"]) == (
        "exception",
        "ValueError",
        "cannot read t5",
    )
    assert error["where"].startswith("loading.py:")
    assert names(box / "S" / "failed-tasks") == ["t0.json", "t19.json", "t5.json", "t6.json"]


def test_a_load_that_raises_is_tried_again_like_any_failure(box: Box) -> None:
    results = run_loading(box, "Loads", ["bad", 1], "--retries", "1", code=3)
    assert [result["state"] for result in results] == ["failed", "complete"]
    assert results[0]["error"]["tries"] == 2


def test_a_batch_that_is_split_gets_its_inputs_anew(box: Box) -> None:
    payloads = ["worse" if index == 6 else index for index in range(12)]
    results = run_loading(box, "LoadsAndRaises", payloads, code=3)
    assert [result["state"] for result in results].count("failed") == 1
    assert [r["result"] for r in results if r["state"] == "complete"] == [
        i for i in range(12) if i != 6
    ]
    assert results[6]["error"]["message"] == "no"


def test_loading_ahead_is_bounded_and_a_drain_releases_what_was_loaded(box: Box) -> None:
    tasks = box.tasks(list(range(40)))
    command = ["run", f"{JOB}:Counted", "--tasks", tasks, "--spool", "S"]
    command += ["--arg", f"notes={box / 'notes'}", "--arg", f"gate={box / 'gate'}"]
    started = box.start(*command)
    wait_until(lambda: {"call 0", "load 1", "load 2"} <= set(notes(box)))
    box.run("drain", "S")
    wait_until_told_to_drain(box / "S")
    (box / "gate").touch()
    started.wait(4)
    first = notes(box)
    assert sum(line.startswith("call") for line in first) < 40
    begun = max(int(line.split()[1]) for line in first if line.startswith("call"))
    loaded = max(int(line.split()[1]) for line in first if line.startswith("load"))
    assert begun <= loaded <= begun + 2, "two batches of one task"
    box.run(*command)
    assert_sound(box, "S", 40)
    calls = [line for line in notes(box) if line.startswith("call")]
    assert len(calls) == 40, "what was loaded and not run is run once"


def test_inputs_are_loaded_while_others_run(box: Box) -> None:
    """Each call waits for the load of the task behind it to begin, so one at a time would hang.

    There are so few that they come in order.
    """
    results = run_loading(box, "Meets", list(range(19)))
    assert [result["result"] for result in results] == [True] * 19


def test_the_time_spent_on_inputs_that_are_not_loaded_ahead_is_told(box: Box) -> None:
    run_loading(box, "SleepsAlone", list(range(20)))
    [stat] = stats(box)
    assert stat["idle_s"]["inputs"] >= 20 * 0.01


@pytest.mark.parametrize("how", ["sleep", "in C"])
@pytest.mark.parametrize("option", ["--task-timeout", "--stall-timeout"])
def test_a_load_that_hangs_is_found_and_nobody_else_is_blamed(
    box: Box, how: str, option: str
) -> None:
    results = run_loading(box, "Hangs", ["a", "b", "c", how, "d", "e"], option, limit(1), code=3)
    assert [result["state"] for result in results] == [
        *["complete"] * 3,
        "failed",
        *["complete"] * 2,
    ]
    error = results[3]["error"]
    assert error["kind"] == "timeout"
    assert "in load" in error["traceback"]


@pytest.mark.parametrize("options", [(), ("--task-timeout", "30s")])
def test_a_load_that_crashes_is_found_and_nobody_else_is_blamed(
    box: Box, options: tuple[str, ...]
) -> None:
    payloads = ["segv" if index == 17 else index for index in range(30)]
    results = run_loading(box, "Hangs", payloads, *options, code=3)
    assert [result["index"] for result in results if result["state"] != "complete"] == [17]
    assert results[17]["error"]["kind"] == "lost"


def test_the_seconds_of_a_rank_add_up(box: Box) -> None:
    run_loading(box, "Sleeps", list(range(20)), "--ranks", "2")
    for stat in stats(box):
        assert set(stat["idle_s"]) == {"start", "load", "inputs", "publish", "work"}
        assert min(stat["idle_s"].values()) >= 0
        assert sum(stat["idle_s"].values()) + stat["busy_s"] == pytest.approx(
            stat["seconds"], abs=0.01
        )
        assert stat["idle_s"]["start"] > 0.01
        assert 2**20 < stat["peak_memory_bytes"] < 2**30


def warm_command(box: Box, how: str, *options: str, tasks: int = 60) -> list[str | Path]:
    arguments = [
        "--arg",
        f"notes={box / 'notes'}",
        "--arg",
        f"gate={box / 'gate'}",
        "--arg",
        f"how={how}",
    ]
    return [
        "run",
        f"{JOB}:Warms",
        "--lines",
        box.lines(tasks),
        "--spool",
        "S",
        *arguments,
        *options,
    ]


@pytest.mark.parametrize("ranks", ["1", "4"])
def test_one_rank_of_a_host_warms_up_before_any_is_made(box: Box, ranks: str) -> None:
    box.run(*warm_command(box, "works", "--ranks", ranks))
    assert_sound(box, "S", 60)
    lines = notes(box)
    assert lines[0].startswith("warm rank-")
    assert lines[1] == "warmed"
    assert len(lines) == 2 + int(ranks)
    assert all(line.startswith("made") for line in lines[2:])


def test_each_start_of_a_run_warms_up_anew(box: Box) -> None:
    """What was warm may be cold by then."""
    hold = ("--arg", f"hold={box / 'hold'}")
    started = box.start(*warm_command(box, "works", *hold))
    wait_until(lambda: "warmed" in notes(box))
    box.run("drain", "S")
    wait_until_told_to_drain(box / "S")
    (box / "hold").touch()
    started.wait(4)
    box.run(*warm_command(box, "works", *hold))
    assert sum(line.startswith("warm rank-") for line in notes(box)) == 2


@pytest.mark.parametrize("how", ["raises", "dies"])
def test_where_the_warm_up_fails_the_next_rank_tries(box: Box, how: str) -> None:
    done = box.run(*warm_command(box, how, "--ranks", "3"))
    assert_sound(box, "S", 60)
    lines = notes(box)
    assert sum(line.startswith("warm rank-") for line in lines) == 2
    assert lines.index("warmed") < min(
        place for place, line in enumerate(lines) if line.startswith("made")
    )
    if how == "raises":
        [failed] = names(box / "S" / "failed")
        closing = record(box / "S" / "failed" / failed)
        assert (closing["reason"], closing["error"]["message"]) == ("load", "cold")
    assert "cold" in done.err or how == "dies"


def test_a_warm_up_that_always_fails_keeps_nobody_for_ever(box: Box) -> None:
    box.run(*warm_command(box, "always", "--ranks", "4"))
    assert_sound(box, "S", 60)
    assert sum(line.startswith("warm rank-") for line in notes(box)) == 3


def test_who_waits_for_a_warm_up_heeds_a_drain(box: Box) -> None:
    started = box.start(
        *warm_command(
            box, "waits", "--ranks", "2", "--grace", limit(2), "--stall-timeout", limit(60)
        )
    )
    beats = box / "S" / "heartbeat"
    wait_until(
        lambda: [
            n
            for n in names(beats)
            if n.startswith("rank") and record(beats / n)["state"] == "waiting"
        ]
    )
    box.run("drain", "S")
    started.wait(4)
    reasons = {
        record(box / "S" / "stopped" / name)["reason"] for name in names(box / "S" / "stopped")
    }
    assert reasons == {"drained", "killed"}
    assert not any(line.startswith("made") for line in notes(box))


def test_no_limit_of_time_holds_while_another_warms_up(box: Box) -> None:
    """The one that hangs in its warm-up is ended; the one that waits for it then warms up."""
    box.run(*warm_command(box, "waits", "--ranks", "2", "--stall-timeout", limit(1)))
    assert_sound(box, "S", 60)
    assert len(names(box / "S" / "failed")) == 1


def test_a_method_named_warmup_is_the_jobs_own(box: Box) -> None:
    box.run("run", f"{JOB}:NotOurWarmup", "--lines", box.lines(3), "--spool", "S")
    assert_sound(box, "S", 3)
    assert not (box / "S" / "warmup").exists()


@pytest.mark.parametrize("prefetch", ["-1", "True", "1.5", "10**19"])
def test_a_prefetch_that_is_no_number_of_batches_is_refused(box: Box, prefetch: str) -> None:
    box.write(
        "job.py",
        f"class Job:\n    prefetch = {prefetch}\n"
        "    def __call__(self, task, ctx):\n        return 1\n",
    )
    done = box.run("run", "job.py:Job", "--lines", box.lines(3), "--spool", "S", code=4)
    assert "it must be a whole number from 0 to 1e+06" in done.err
