"""Whole runs on a real Slurm: whoever types the command cooperates, whatever dies meanwhile."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from helpers import (
    GPUSPOOL,
    JOBS,
    Box,
    assert_sound,
    journal_lines,
    kill,
    names,
    record,
    wait_until,
)
from slurm.cluster import Cluster

LEASE = ("--lease", "3s")


def command(box: Box, n_tasks: int, seconds: float = 0.05, *options: str) -> str:
    """The command line that each element of an array gives."""
    words = [GPUSPOOL, "run", f"{JOBS}/cluster.py:works", "--lines", box.lines(n_tasks)]
    words += ["--arg", f"notes={box / 'notes'}", "--arg", f"seconds={seconds}", "--spool", "S"]
    return " ".join(map(str, [*words, *options]))


def submit(box: Box, slurm: Cluster, text: str, *options: str) -> str:
    """A batch job, or an array of them, of one GPU each."""
    outs = f"--output={box / 'job-%a.out'}"
    return slurm.submit("--gpus=1", "--open-mode=append", outs, *options, "--wrap", f"exec {text}")


def calls(box: Box) -> list[list[str]]:
    """[task, host, attempt] of each call so far."""
    path = Path(f"{box / 'notes'}.calls")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def hosts_of(box: Box) -> Counter[str]:
    """How many tasks were completed on each host."""
    return Counter(result["result"][0] for result in box.results("S"))


def output(box: Box) -> str:
    """What all jobs have printed."""
    return "\n".join(path.read_text() for path in sorted(box.home.glob("job-*.out")))


def worker_on(box: Box, slurm: Cluster, node: str) -> int:
    """The pid, as seen here, of a gpuspool worker on a node."""

    def find() -> int:
        for pid in slurm.processes(node):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"gpuspool.worker" in words:
                return pid
        return 0

    return wait_until(find)


def test_nine_elements_that_give_one_command_share_one_run(box: Box, slurm: Cluster) -> None:
    job = submit(box, slurm, command(box, 450), "--array=0-8")
    slurm.wait_for(job, "COMPLETED", "FAILED")
    assert set(slurm.states(job).values()) == {"COMPLETED"}, output(box)
    assert_sound(box, "S", 450)
    assert len(calls(box)) == 450, "nothing ran twice"
    ranks = {line.split(".")[0] for _, _, line in calls(box)}
    assert len(ranks) == 9, "each element had its share"
    assert set(hosts_of(box)) == {"n1", "n2", "n3"}
    ends = [record(box / "S" / "parents" / name) for name in names(box / "S" / "parents")]
    assert [end["how"] for end in ends if "how" in end] == ["finished"] * 9


def test_a_dead_worker_a_requeue_and_a_crashed_node_lose_nothing(box: Box, slurm: Cluster) -> None:
    text = command(box, 300, 0.1, *LEASE)
    job = submit(box, slurm, text, "--array=0-8", "--requeue")
    wait_until(lambda: len({host for _, host, _ in calls(box)}) == 3)
    kill(worker_on(box, slurm, "n1"))
    slurm.run("scontrol", "requeue", f"{job}_8", code=0)
    slurm.crash("n3")
    slurm.declare_down("n3")
    wait_until(lambda: len(box.results("S")) == 300 and box.status("S")["state"] == "complete")
    assert_sound(box, "S", 300)
    # What was in hand when somebody died ran again, and was counted once.
    done = Counter(line["task"] for line in journal_lines(box / "S") if line["state"] == "complete")
    assert max(done.values()) == 1 or box.status("S")["ran_twice"] > 0
    assert names(box / "S" / "failed-tasks") == []
    slurm.run("scancel", job)


def test_a_resume_elsewhere_begins_at_once(box: Box, slurm: Cluster) -> None:
    """What the cancelled job had in hand is not proved dead yet: all the rest is claimable."""
    box.write("notes.gate", "")
    first = submit(box, slurm, command(box, 60, 0.3), "--nodelist=n1")
    wait_until(lambda: calls(box))
    slurm.run("scancel", "--signal=KILL", "--full", first)
    slurm.wait_for(first, "CANCELLED", "FAILED")
    n_before = len(calls(box))
    second = submit(box, slurm, f"{GPUSPOOL} resume S --lease 120s", "--nodelist=n2")
    wait_until(lambda: len(calls(box)) > n_before)
    assert calls(box)[n_before][1] == "n2"
    epochs = names(box / "S" / "parents")
    assert epochs[-1].startswith("0001"), "it did not wait for the lease"
    slurm.run("scancel", second)


def test_the_gatherers_node_crashes_and_the_next_one_ends_the_run(box: Box, slurm: Cluster) -> None:
    text = command(box, 200, 0.1, *LEASE)
    first = submit(box, slurm, text, "--nodelist=n1", "--no-requeue")
    wait_until(lambda: (box / "S" / "parents" / "0000.json").exists())
    second = submit(box, slurm, text, "--nodelist=n2")
    wait_until(lambda: {host for _, host, _ in calls(box)} == {"n1", "n2"})
    slurm.crash("n1")
    slurm.declare_down("n1")
    slurm.wait_for(second, "COMPLETED", "FAILED")
    assert slurm.state(second) == "COMPLETED", output(box)
    assert slurm.state(first) == "NODE_FAIL"
    assert_sound(box, "S", 200)
    assert record(box / "S" / "summary.json")["how"] == "finished"


@pytest.mark.parametrize("order", ["drain", "max-failed"])
def test_what_was_stopped_by_order_stays_stopped(box: Box, slurm: Cluster, order: str) -> None:
    """From the login node, or since too many tasks failed: all elements end with 4."""
    if order == "drain":
        text = command(box, 2000, 0.1)
    else:
        job = box.write(
            "bad.py",
            "import time\ndef f(task, ctx):\n"
            "    time.sleep(0.05)\n    assert task.index % 3, 'a third fails'\n",
        )
        lines = box.lines(2000)
        text = f"{GPUSPOOL} run {job}:f --lines {lines} --spool S --max-failed 5"
    # As a script that requeues on 75 would be written.
    script = box.write("element.sh", f"#!/bin/sh\n{text}\ncode=$?\necho exit $code\nexit $code\n")
    outs = f"--output={box / 'job-%a.out'}"
    job = slurm.submit("--gpus=1", "--array=0-3", outs, script)
    if order == "drain":
        wait_until(lambda: len({attempt for _, _, attempt in calls(box)}) == 4)
        box.run("drain", "S")
        assert box.run("wait", "S", code=4)
    slurm.wait_for(job, "FAILED", "COMPLETED")
    assert output(box).count("exit 4") == 4, output(box)
    assert set(slurm.states(job).values()) == {"FAILED"}
    assert {slurm.show(f"{job}_{element}")["Restarts"] for element in range(4)} == {"0"}


def test_who_is_suspended_beyond_the_lease_is_counted_once(box: Box, slurm: Cluster) -> None:
    text = command(box, 150, 0.1, *LEASE)
    first = submit(box, slurm, text, "--nodelist=n1")
    wait_until(lambda: calls(box))
    second = submit(box, slurm, text, "--nodelist=n2")
    wait_until(lambda: {host for _, host, _ in calls(box)} == {"n1", "n2"})
    slurm.suspend("n1")
    slurm.wait_for(second, "COMPLETED", "FAILED")
    assert slurm.state(second) == "COMPLETED", output(box)
    slurm.resume("n1")
    slurm.wait_for(first, "COMPLETED", "FAILED")
    assert_sound(box, "S", 150)
    assert names(box / "S" / "failed-tasks") == []


def test_fresh_is_refused_while_others_live_elsewhere(box: Box, slurm: Cluster) -> None:
    first = submit(box, slurm, command(box, 500, 0.1), "--nodelist=n1")
    wait_until(lambda: calls(box))
    words = command(box, 500, 0.1, "--fresh").split()[1:]
    done = box.run(*words, code=6)
    assert "host n1" in done.err
    assert "gpuspool drain" in done.err
    slurm.run("scancel", first)


def test_new_code_drains_those_that_run_the_old_one(box: Box, slurm: Cluster) -> None:
    job = box.write("job.py", "import time\ndef f(task, ctx):\n    time.sleep(0.1)\n    return 1\n")
    words = f"run {job}:f --lines {box.lines(400)} --spool S"
    first = submit(box, slurm, f"{GPUSPOOL} {words}", "--nodelist=n1")
    wait_until(lambda: (box / "S").exists() and journal_lines(box / "S"))
    box.write("job.py", job.read_text().replace("return 1", "return 2").replace("0.1", "0.001"))
    assert "the job changed" in box.run(*words.split(), code=2).err
    box.run(*words.split(), "--keep-done")
    slurm.wait_for(first, "FAILED", "COMPLETED")
    assert slurm.show(first)["ExitCode"].startswith("4:")
    assert_sound(box, "S", 400)
    told = Counter(result["result"] for result in box.results("S"))
    assert set(told) == {1, 2}


def test_a_late_element_of_a_finished_run_ends_at_once_and_of_a_live_one_when_told_to(
    box: Box, slurm: Cluster
) -> None:
    text = command(box, 10)
    words = text.replace(f"--lines {box.lines(10)}", f"--tasks {box.tasks(['wait'])}")
    first = submit(box, slurm, words)
    wait_until(lambda: calls(box))
    leaving = submit(box, slurm, f"{words} --leave-when-idle 0.5s")
    slurm.wait_for(leaving, "COMPLETED", "FAILED")
    assert slurm.show(leaving)["ExitCode"] == "75:0", output(box)
    assert slurm.state(first) == "RUNNING"
    box.write("notes.gate", "")
    slurm.wait_for(first, "COMPLETED", "FAILED")
    started = names(box / "S" / "attempts")
    for option in ("", " --leave-when-idle 0.5s"):
        late = submit(box, slurm, words + option)
        slurm.wait_for(late, "COMPLETED", "FAILED")
        assert slurm.state(late) == "COMPLETED", output(box)
    assert names(box / "S" / "attempts") == started, "the late ones started nobody"
    assert_sound(box, "S", 1)
    assert len(calls(box)) == 1


def test_two_elements_of_one_node_that_both_see_gpu_0_both_work(box: Box, slurm: Cluster) -> None:
    """In another job the same number is another card, as where devices are constrained."""
    text = f"env CUDA_VISIBLE_DEVICES=0 {command(box, 100, 0.1)}"
    job = submit(box, slurm, text, "--array=0-1", "--nodelist=n1")
    slurm.wait_for(job, "COMPLETED", "FAILED")
    assert set(slurm.states(job).values()) == {"COMPLETED"}, output(box)
    assert_sound(box, "S", 100)
    shares = Counter(result["result"][1] for result in box.results("S"))
    assert len(shares) == 2
    assert min(shares.values()) > 10


def test_srun_that_kills_on_a_bad_exit_kills_nobody(box: Box, slurm: Cluster) -> None:
    words = command(box, 120, 0.05).split()
    flags = ("--nodes=2", "--ntasks=4", "--gpus-per-task=1", "--kill-on-bad-exit=1")
    slurm.run("srun", *flags, *words)
    assert_sound(box, "S", 120)
    assert len({attempt for _, _, attempt in calls(box)}) == 4


def test_a_run_that_was_killed_elsewhere_is_told_to_be_silent(box: Box, slurm: Cluster) -> None:
    """From the login node: what is not proved is not told to run."""
    job = submit(box, slurm, command(box, 500, 0.2, "--lease", "6s"), "--nodelist=n1")
    wait_until(lambda: calls(box))
    assert box.status("S")["state"] == "running"
    assert [row["host"] for row in box.status("S")["parents"]] == ["n1"]
    slurm.crash("n1")
    wait_until(lambda: box.status("S")["state"] == "silent")
    [parent] = box.status("S")["parents"]
    assert parent["state"] == "silent"
    assert parent["silent_s"] > 0
    assert "silent" in box.run("status", "S").out
    ended = box.run("wait", "S", code=4)
    assert "stopped" in ended.out, "once its lease is over it is dead"
    slurm.run("scancel", job)
