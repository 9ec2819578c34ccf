"""Going on with another world size, after a move, with a changed job; and what is refused."""

import json
import os
import signal
from pathlib import Path

import pytest
from helpers import (
    JOBS,
    Box,
    assert_sound,
    count_lines,
    half_done,
    identities,
    journal_lines,
    names,
    newest_parent,
    ran,
    record,
    seal,
    seal_pretty,
    start_gated,
    tree,
    wait_until,
    waiting,
)
from spooling import watch_opens

import gpuspool


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 4)])
def test_another_world_size_gives_the_same_results(box: Box, before: int, after: int) -> None:
    command = half_done(box, ranks=before)
    done_before = [line["task"] for line in journal_lines(box / "S")]
    assert box.status("S")["state"] == "stopped"
    box.run(*command, "--ranks", str(after))
    results = assert_sound(box, "S", 40)
    assert [result["result"] for result in results] == [f"go {i}" for i in range(20)] + [
        "wait"
    ] * 20
    assert sorted(ran(box)) == list(range(40)), "no task that was done ran again"
    assert set(done_before) == set(range(20))
    assert {int(name[5:9]) for name in names(box / "S" / "attempts")} == set(
        range(max(before, after))
    )


def test_a_spool_that_was_moved_goes_on_where_it_is(box: Box) -> None:
    half_done(box, ranks=2)
    (box / "elsewhere").mkdir()
    os.rename(box / "S", box / "elsewhere" / "moved")
    box.run("resume", "elsewhere/moved", cwd=box.home.parent, code=2)
    box.run("resume", box / "elsewhere" / "moved", cwd=box.home.parent)
    assert_sound(box, "elsewhere/moved", 40)
    assert sorted(ran(box)) == list(range(40))


def test_a_moved_spool_keeps_its_outputs_with_it(box: Box) -> None:
    command = ["run", f"{JOBS}/plain.py:write", "--lines", box.lines(6), "--spool", "S"]
    box.run(*command)
    os.rename(box / "S", box / "T")
    assert len(assert_sound(box, "T", 6)) == 6
    assert len(names(box / "T" / "outputs")) == 6
    box.run("resume", "T")
    box.run(*command)
    assert_sound(box, "S", 6)


def test_a_changed_job_is_refused_with_the_difference(box: Box) -> None:
    box.job("plain.py")
    gates = box.job("gates.py")
    command = [
        "run",
        "gates.py:gated",
        "--tasks",
        box.tasks(["b", "c", "wait"]),
        "--arg",
        f"gate={box / 'gate'}",
    ]
    started = box.start(*command)
    wait_until(lambda: waiting(box) and journal_lines(box / "spool-gated"))
    box.kill_all()
    started.wait()
    (box / "gate").touch()
    gates.write_text(
        gates.read_text().replace("return task.payload", "return task.payload.upper()")
    )
    for again in (command, ["resume"], ["retry"]):
        done = box.run(*again, code=2)
        assert "-    return task.payload\n+    return task.payload.upper()\n" in done.err
        assert "--keep-done" in done.err
        # The others do not have it.
        assert ("--fresh" in done.err) == (again[0] == "run")
        assert "Traceback" not in done.err
    assert len(names(box / "spool-gated" / "attempts")) == 1


def test_keep_done_keeps_what_is_done_and_is_asked_for_once(box: Box) -> None:
    box.job("plain.py")
    gates = box.job("gates.py")
    payloads = ["a", "b", "c", "wait", "wait"]
    command = [
        "run",
        "gates.py:gated",
        "--tasks",
        box.tasks(payloads),
        "--arg",
        f"gate={box / 'gate'}",
    ]
    started = box.start(*command)
    wait_until(lambda: waiting(box) and len(journal_lines(box / "spool-gated")) == 3)
    box.kill_all()
    started.wait()
    gates.write_text(
        gates.read_text().replace("return task.payload", "return task.payload.upper()")
    )
    started = box.start(*command, "--keep-done")
    wait_until(lambda: len(waiting(box)) == 2)
    box.kill_all()
    started.wait()
    (box / "gate").touch()
    again = box.run("resume")
    assert "changed" not in again.err
    assert [result["result"] for result in assert_sound(box, "spool-gated", 5)] == [
        "a",
        "b",
        "c",
        "WAIT",
        "WAIT",
    ]
    assert "changed" not in box.run(*command).err
    attempts = box / "spool-gated" / "attempts"
    hashes = [record(attempts / name)["job"]["sha256"] for name in names(attempts)]
    assert len(hashes) == 3
    assert len(set(hashes)) == 2
    assert len([name for name in names(box / "spool-gated" / "job") if name.endswith(".py")]) == 2


def test_fresh_renames_the_old_spool(box: Box) -> None:
    plain = box.job("plain.py")
    command = ["run", "plain.py:double", "--lines", box.lines(3)]
    box.run(*command)
    plain.write_text(plain.read_text().replace("return 2 *", "return 3 *"))
    box.run(*command, "--fresh")
    box.run(*command, "--fresh")
    for spool, factor in (
        ("spool-double.old-1", 2),
        ("spool-double.old-2", 3),
        ("spool-double", 3),
    ):
        assert [result["result"] for result in assert_sound(box, spool, 3)] == [
            0,
            factor,
            2 * factor,
        ]


def test_fresh_with_an_output_folder_of_its_own(box: Box) -> None:
    """The new run may not overwrite the old one's outputs unless it is told to."""
    command = [
        "run",
        f"{JOBS}/plain.py:write",
        "--lines",
        box.lines(2),
        "--out",
        "out",
        "--fresh",
        "--spool",
        "S",
    ]
    box.run(*command)
    assert "out is not empty" in box.run(*command, code=2).err
    box.run(*command, "--overwrite")
    assert names(box / "out") == names(box / "out.old-1") == ["t0.txt", "t1.txt"]
    assert_sound(box, "S", 2)


def test_fresh_is_refused_while_workers_of_the_old_run_live(box: Box) -> None:
    started, command = start_gated(box, ["wait", "a"])
    wait_until(lambda: waiting(box))
    assert "a gpuspool on host" in box.run(*command, "--fresh", code=6).err
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    done = box.run(*command, "--fresh", code=6)
    assert "rank-0000.a00 may still be running" in done.err
    (box / "gate").touch()
    wait_until(lambda: not box.processes())
    box.run(*command, "--fresh")
    assert_sound(box, "S", 2)
    assert_sound(box, "S.old-1", 2)


def test_a_refused_fresh_leaves_the_outputs_of_the_live_run_alone(box: Box) -> None:
    started, command = start_gated(box, ["wait"], "--out", "out")
    wait_until(lambda: waiting(box))
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    before = tree(box / "out")
    box.run(*command, "--out", "out", "--overwrite", "--fresh", code=6)
    assert not (box / "out.old-1").exists()
    assert tree(box / "out") == before


def test_anything_else_that_changed_is_refused_with_what_differs(box: Box) -> None:
    lines = box.lines(3)
    box.write("more", "0\n1\n2\n3\n")
    box.write("other", "0\nx\n2\n")
    command = ["run", f"{JOBS}/plain.py:describe", "--spool", "S", "--lines"]
    same = [lines, "--arg", "a=1"]
    box.run(*command, *same)
    before = tree(box.home)
    for changed, says in (
        (["more", "--arg", "a=1"], "1 new, 0 gone, 0 changed"),
        (["other", "--arg", "a=1"], "1 new, 0 gone, 0 changed\n  new: t1"),
        ([lines, "--arg", "a=2"], "--arg a: 1 before, 2 now"),
        ([*same, "--arg", "b=1"], "--arg b: not given before, 1 now"),
        ([*same, "--seed", "4"], "--seed: 0 before, 4 now"),
        ([*same, "--out", "out"], "--out: SPOOL/outputs before"),
        ([*same, "--seed", "4", "--keep-done"], "--seed: 0 before, 4 now"),
    ):
        done = box.run(*command, *changed, code=2)
        assert says in done.err
        assert "--fresh" in done.err
        assert "Traceback" not in done.err
    assert tree(box.home) == before
    box.run(*command, "more", "--fresh")
    assert_sound(box, "S", 4)


def test_file_inputs_are_known_by_path_and_size(box: Box) -> None:
    for name in ("a", "b"):
        box.write(f"in/{name}", "1234")
    command = ["run", f"{JOBS}/plain.py:describe", "in/*", "--spool", "S"]
    box.run(*command)
    (box / "in" / "b").write_text("5678")
    assert "warning: 1 input changed after its task had run: b" in box.run(*command).err
    (box / "in" / "b").write_text("56789")
    assert "0 new, 0 gone, 1 changed\n  changed: b" in box.run(*command, code=2).err
    (box / "in" / "b").write_text("5678")
    box.write("in/c", "1234")
    assert "1 new, 0 gone, 0 changed\n  new: c" in box.run(*command, code=2).err


def test_a_changed_command_is_refused(box: Box) -> None:
    box.run("run", "--lines", box.lines(2), "--spool", "S", "--", "true", "{input}")
    done = box.run("run", "--lines", "lines", "--spool", "S", "--", "true", "{key}", code=2)
    assert "- true {input}\n+ true {key}" in done.err
    box.run("run", "--lines", "lines", "--spool", "S", "--", "true", "{input}")
    box.run("resume", "S")


def test_options_that_change_no_result_may_change(box: Box) -> None:
    command = half_done(box, ranks=2)
    box.run(
        *command,
        "--ranks",
        "1",
        "--retries",
        "3",
        "--grace",
        "5s",
        "--poll",
        "0.1",
        "--max-restarts",
        "9",
    )
    options = record(box / "S" / "attempts" / "rank-0000.a01.json")["options"]
    assert (options["ranks"], options["retries"], options["poll_s"], options["max_restarts"]) == (
        1,
        3,
        0.1,
        9,
    )
    assert_sound(box, "S", 40)


def test_a_job_whose_file_is_gone_resumes_from_the_copy(box: Box) -> None:
    plain = box.job("plain.py")
    box.run(
        "run",
        "plain.py:fails_until_fixed",
        "--tasks",
        box.tasks(["bad", "good"]),
        "--arg",
        "fixed=fixed",
        code=3,
    )
    plain.unlink()
    (box / "fixed").touch()
    box.run("retry")
    assert_sound(box, "spool-fails_until_fixed", 2)


def test_workers_go_on_when_their_orchestrator_is_killed(box: Box) -> None:
    started, command = start_gated(box, ["wait", *["go"] * 10, "wait"], "--ranks", "2")
    wait_until(lambda: len(waiting(box)) == 2)
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    assert box.status("S")["state"] == "running"
    (box / "gate").touch()
    wait_until(lambda: not box.processes())
    assert box.status("S")["state"] == "complete"
    assert len(names(box / "S" / "complete")) == 2
    assert_sound(box, "S", 12)
    before = count_lines(box / "S")
    box.run(*command)
    assert count_lines(box / "S") == before


def test_a_second_run_adopts_the_workers_of_a_dead_one(box: Box) -> None:
    """No rank gets a twin while its attempt lives, and the new orchestrator sees the run to its
    end.
    """
    started, command = start_gated(box, ["wait", "wait", *["go"] * 10], "--ranks", "2")
    wait_until(lambda: len(waiting(box)) == 2)
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    before = names(box / "S" / "attempts")
    pids = set(identities(box / "S").values())
    again = box.start(*command)
    wait_until(lambda: again.err.count("outlived its parent") == 2)
    wait_until(lambda: newest_parent(box / "S")["pid"] == again.pid)
    assert box.status("S")["parents"][-1]["pid"] == again.pid
    assert set(identities(box / "S").values()) == pids
    (box / "gate").touch()
    again.wait(0)
    assert names(box / "S" / "attempts") == before == ["rank-0000.a00.json", "rank-0001.a00.json"]
    assert_sound(box, "S", 12)
    assert sorted(ran(box)) == list(range(12))


def test_an_adopted_worker_that_dies_is_closed_and_its_rank_restarted(box: Box) -> None:
    started, command = start_gated(box, ["wait", *["go"] * 5])
    wait_until(lambda: waiting(box))
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    again = box.start(*command)
    wait_until(lambda: "outlived" in again.err)
    os.kill(identities(box / "S")["rank-0000.a00"], signal.SIGKILL)
    wait_until(lambda: (box / "S" / "attempts" / "rank-0000.a01.json").exists())
    (box / "gate").touch()
    again.wait(0)
    assert_sound(box, "S", 6)
    assert names(box / "S" / "failed") == ["rank-0000.a00.json"]
    assert record(box / "S" / "failed" / "rank-0000.a00.json")["reason"] == "lost", (
        "nobody saw it die: no blame"
    )


@pytest.mark.parametrize("verb", ["run", "resume", "retry"])
def test_a_second_start_works_beside_the_first(box: Box, verb: str) -> None:
    started, command = start_gated(box, ["wait", "wait", *["go"] * 6])
    wait_until(lambda: len(waiting(box)) == 1)
    again = box.start(*(command if verb == "run" else [verb, "S"]))
    wait_until(lambda: len(waiting(box)) == 2)
    both = ["rank-0000.a00.json", "rank-0001.a00.json"]
    wait_until(lambda: names(box / "S" / "attempts") == both)
    (box / "gate").touch()
    started.wait(0)
    again.wait(0)
    assert_sound(box, "S", 8)
    assert sorted(ran(box)) == list(range(8)), "nothing ran twice"
    assert (box / "S" / "orchestrator.lock").exists(), "a lock file is never unlinked"


def test_a_living_worker_closes_a_dead_one_where_no_orchestrator_does(box: Box) -> None:
    """It takes over the tasks that the dead one had claimed."""
    started, _ = start_gated(box, ["wait", "wait", *["go"] * 6], "--ranks", "2")
    wait_until(lambda: len(waiting(box)) == 2)
    started.signal(signal.SIGKILL)
    started.wait(-signal.SIGKILL)
    victim = identities(box / "S")["rank-0001.a00"]
    os.kill(victim, signal.SIGKILL)
    (box / "gate").touch()
    wait_until(lambda: not box.processes())
    assert_sound(box, "S", 8)
    assert record(box / "S" / "failed" / "rank-0001.a00.json")["by"] == "rank-0000.a00"


def move_to_another_host(spool: Path, attempt: str) -> None:
    """Make a dead attempt, and the parent that started it, look like processes of another host."""
    journal, intent = spool / "journal" / f"{attempt}.jsonl", spool / "attempts" / f"{attempt}.json"
    head, _, rest = journal.read_bytes().partition(b"\n")
    elsewhere = {"host": "elsewhere", "boot_id": "another"}
    journal.write_bytes(seal(json.loads(head) | elsewhere) + rest)
    fields = record(intent)
    intent.write_bytes(seal_pretty(fields | {"parent": fields["parent"] | elsewhere}))
    parent = spool / "parents" / f"{fields['epoch']:04d}.json"
    parent.write_bytes(seal_pretty(record(parent) | elsewhere))


@pytest.mark.parametrize(
    "options", [[["--lease", "1s"], []], [["--lease", "3s"], ["--lease", "1s"]]]
)
def test_a_silent_worker_of_another_host_is_closed_after_a_lease(
    box: Box, options: list[list[str]]
) -> None:
    """Only a beat that stands still proves it dead. The lease may be given as late as that."""
    command = half_done(box, *options[0])
    move_to_another_host(box / "S", "rank-0000.a00")
    done = box.run(*command, *options[1])
    waits = "what it has in hand is given to others only once its beat has stood still for"
    assert f"rank-0000.a00 on host elsewhere: may be at work; {waits}" in done.err
    assert_sound(box, "S", 40)
    assert sorted(ran(box)) == list(range(40))
    assert record(box / "S" / "failed" / "rank-0000.a00.json")["reason"] == "lost"


def test_one_of_several_that_start_at_once_makes_the_spool(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/plain.py:noted",
        "--lines",
        box.lines(50),
        "--arg",
        f"notes={box / 'notes'}",
    ]
    codes = [
        started.wait().code for started in [box.start(*command, "--spool", "S") for _ in range(4)]
    ]
    assert 0 in codes
    assert set(codes) <= {0, 6}, "the others are told, or find it done"
    assert_sound(box, "S", 50)
    assert sorted(map(int, (box / "notes").read_text().split())) == list(range(50))


def test_another_function_of_the_same_file_is_another_run(box: Box) -> None:
    """The source is the same to the byte, so only the name tells."""
    box.write("two.py", "def one(task, ctx): return 1\ndef two(task, ctx): return 2\n")
    box.run("run", "two.py:one", "--lines", box.lines(2), "--spool", "S")
    done = box.run("run", "two.py:two", "--lines", "lines", "--spool", "S", code=2)
    assert "job: two.py:one before, two.py:two now" in done.err
    assert [result["result"] for result in box.results("S")] == [1, 1]


def test_a_time_limit_is_that_of_one_start(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/gates.py:gated",
        "--tasks",
        box.tasks(["wait", "go"]),
        "--spool",
        "S",
    ]
    command += ["--arg", f"gate={box / 'gate'}"]
    box.run(*command, "--time-limit", "0.1s", "--grace", "0.1s", code=75)
    started = box.start("resume", "S")
    wait_until(lambda: (box / "S" / "attempts" / "rank-0000.a01.json").exists())
    limits = [
        record(box / "S" / "attempts" / name)["options"].get("time_limit_s")
        for name in names(box / "S" / "attempts")
    ]
    assert limits == [0.1, None]
    (box / "gate").touch()
    started.wait(0)
    assert_sound(box, "S", 2)


def test_the_same_command_again_reads_each_journal_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Journals are most of what there is to read of a large run where everything is complete."""
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name)

    def run() -> gpuspool.Report:
        job = f"{JOBS}/plain.py:describe"
        return gpuspool.run(job, "*.txt", spool="S", ranks=2, devices="cpu", quiet=True)

    run()
    opened = watch_opens(monkeypatch)
    report = run()
    assert report.exit_code == 0
    journals = [path for path in opened if "/journal/" in path]
    assert len(journals) == len(set(journals)) == 2
