"""What `gpuspool explain` tells of tasks and ranks, on spools that real runs left.

Each test plays one situation and asks for the story of who was in it.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import JOBS, Box, half_done, limit, names, start_gated, wait_until, waiting
from test_many_parents import another_host

import gpuspool
from gpuspool.orchestrator.api.reading import tell
from gpuspool.orchestrator.cli.subject import Subject, subject_of
from gpuspool.orchestrator.report.endings import frames_of
from gpuspool.orchestrator.report.story import Step, Story, in_order, story_text
from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import Error
from gpuspool.spool.states import ErrorKind

# Waits for the gate in its hundredth call.
WAITS_LATE = """
import pathlib, time
calls = []
def Job(task, ctx):
    calls.append(task.key)
    if len(calls) == 100:
        pathlib.Path("waiting").touch()
        while not pathlib.Path("gate").exists(): time.sleep(0.004)
    return 1
"""


def task(box: Box, key: str) -> Any:
    return gpuspool.explain(box / "S", key=key)


def rank(box: Box, number: int) -> Any:
    return gpuspool.explain(box / "S", rank=number)


def steps(story: Any) -> list[str]:
    """What happened, a word for each step."""
    return [step["what"] for step in story["steps"]]


def text_of(story: Any, what: str) -> str:
    """The text of the last step of a kind."""
    return [step["text"] for step in story["steps"] if step["what"] == what][-1]


def run(box: Box, job: str, payloads: list[Any], *options: str, code: int = 0) -> None:
    command = ["run", f"{JOBS}/{job}", "--tasks", box.tasks(payloads), "--spool", "S"]
    box.run(*command, *options, code=code)


# A task.


def test_who_has_a_task_and_how_many_come_before_another(box: Box) -> None:
    payloads = [{"payload": "wait", "cost": 30 - index} for index in range(6)]
    started, _ = start_gated(box, payloads, "--ranks", "1", "--lease", "12s")
    wait_until(lambda: waiting(box) == [0])
    running = wait_until(lambda: (one := task(box, "t0"))["state"] == "running" and one)
    assert steps(running) == ["planned", "claimed"]
    assert text_of(running, "planned") == "planned for rank 0, place 1 of 6 (longest first)"
    assert text_of(running, "claimed").endswith(", rank-0000.a00")
    assert "rank 0 (cpu on " in running["now"]
    assert "has it in hand since" in running["now"]
    later = task(box, "t5")
    assert (later["state"], steps(later)) == ("waiting", ["planned"])
    assert later["now"] == "nobody has claimed it: 4 tasks of rank 0's list come before it"
    assert later["next"].startswith("its turn comes; any rank")
    assert task(box, "t1")["now"] == "nobody has claimed it: it is the next of rank 0's list"
    (box / "gate").touch()
    started.wait(0)
    done = task(box, "t5")
    assert (done["state"], steps(done)) == ("complete", ["planned", "claimed", "complete"])
    assert "by rank-0000.a00" in done["now"]
    assert done["next"] is None


def test_a_task_that_is_claimed_and_not_begun_knows_its_turn(box: Box) -> None:
    """Claims grow while tasks are short. The hundredth call waits, with others of its claim."""
    box.write("job.py", WAITS_LATE)
    started = box.start(
        *("run", "job.py:Job", "--lines", box.lines(600), "--spool", "S", "--ranks", "1"),
        *("--lease", "12s"),
    )
    wait_until(lambda: (box / "waiting").exists())
    stories = (task(box, f"#{index}") for index in range(100, 600))
    claimed = next(story for story in stories if story["state"] == "claimed")
    assert " has claimed it as number " in claimed["now"]
    assert ", with " in text_of(claimed, "claimed")
    assert claimed["next"] == "it runs when its turn comes"
    (box / "gate").touch()
    started.wait(0)


def test_a_task_whose_whole_run_was_killed_is_taken_over(box: Box) -> None:
    command = half_done(box)
    in_hand = f"t{waiting(box)[0]}"
    dead = task(box, in_hand)
    assert dead["state"] == "claimed"
    assert "has died with it, and nobody has said so yet" in dead["now"]
    assert dead["next"].startswith("nobody is at work; `gpuspool resume ")
    assert task(box, "t39")["next"].startswith("nobody is at work; ")
    box.run(*command)
    story = task(box, in_hand)
    assert steps(story) == ["planned", "claimed", "ended", "claimed", "complete"]
    ended = text_of(story, "ended")
    assert ended.startswith("rank-0000.a00 died, and nobody saw how; another parent found that; ")
    assert ended.endswith("the task was given out again")
    assert text_of(story, "claimed").endswith(", from what rank-0000.a00 left")
    assert text_of(story, "complete").startswith("complete on rank-0000.a01 after ")


def test_a_worker_that_is_killed_is_told_and_its_task_given_out_again(box: Box) -> None:
    command = ["run", f"{JOBS}/gates.py:dies", "--tasks", box.tasks(["once"]), "--spool", "S"]
    box.run(*command, "--ranks", "1", "--arg", f"gate={box / 'gate'}")
    story = task(box, "t0")
    assert steps(story) == ["planned", "claimed", "ended", "claimed", "started", "complete"]
    ended = text_of(story, "ended")
    assert ended.startswith("rank-0000.a00 ended: crash, killed by SIGKILL; ")
    assert "given out again: a kill mostly comes from outside" in ended
    assert text_of(story, "started") == "started on rank-0000.a01, alone"
    of_rank = rank(box, 0)
    assert steps(of_rank) == ["started", "ended", "started", "ready", "ended"]
    assert [one["reason"] for one in of_rank["attempts"]] == ["crash", "finished"]
    assert of_rank["attempts"][0]["done"] == 0
    assert of_rank["now"] == "nothing of it runs; 1 task complete in all"
    assert "1 task given back" in of_rank["steps"][1]["text"]


def test_a_task_that_fails_after_its_retries_shows_the_line_and_each_opinion(box: Box) -> None:
    payloads: list[Any] = ["good"] * 8
    payloads[3] = "bad"
    fixed = ("--arg", f"fixed={box / 'fixed'}")
    run(
        box,
        "plain.py:fails_until_fixed",
        payloads,
        "--ranks",
        "2",
        "--retries",
        "1",
        *fixed,
        code=3,
    )
    story = task(box, "t3")
    assert story["state"] == "failed"
    assert [steps(story).count(what) for what in ("deferred", "held", "failed")] == [2, 2, 1]
    assert "(ValueError at plain.py:" in text_of(story, "deferred")
    assert "it waits there for another" in text_of(story, "deferred")
    held = next(step for step in story["steps"] if step["what"] == "held")
    assert held["details"][0].endswith('raise ValueError(f"{task.key} is bad")')
    assert "a parent ruled: it is to be tried elsewhere than in rank-000" in text_of(story, "ruled")
    assert text_of(story, "failed").startswith(
        "a parent ruled: it has failed for good, in 2 attempts: "
    )
    assert story["now"].startswith("failed for good: ValueError at plain.py:")
    assert story["next"].startswith("`gpuspool retry ")
    (box / "fixed").touch()
    box.run("retry", "S")
    again = task(box, "t3")
    assert (again["state"], again["round"]) == ("complete", 1)
    assert steps(again)[-3:] == ["retried", "claimed", "complete"]


def test_a_failure_that_is_a_verdict_at_once(box: Box) -> None:
    fixed = ("--arg", f"fixed={box / 'fixed'}")
    run(
        box,
        "plain.py:fails_until_fixed",
        ["good", "bad"],
        "--ranks",
        "1",
        "--keep-going",
        *fixed,
        code=3,
    )
    story = task(box, "t1")
    assert steps(story) == ["planned", "claimed", "failed"]
    assert text_of(story, "failed").startswith("failed for good on rank-0000.a00: ValueError at ")


def test_a_time_out_shows_the_users_frames_first(box: Box) -> None:
    payloads = ["a", "b", "sleep", "d", "e", "f"]
    options = ("--ranks", "2", "--task-timeout", limit(1), "--max-restarts", "0")
    run(box, "harsh.py:hangs", payloads, *options, code=3)
    story = task(box, "t2")
    ended = next(step for step in story["steps"] if step["what"] == "ended")
    assert (
        "ended: it took too long with the task in hand, which counts against it: " in ended["text"]
    )
    assert "took longer than --task-timeout" in ended["text"]
    assert [frame.partition(" ")[2] for frame in ended["details"]] == ["in hang", "in hangs"]
    assert all(frame.startswith("harsh.py:") for frame in ended["details"])
    assert story["now"].startswith("failed for good: TaskTimeout at harsh.py:")
    assert "log SPOOL" not in story["now"], "the story tells where"
    assert {rank(box, number)["next"] for number in (0, 1)} == {None}, "the run is finished"
    other = rank(box, 1 if rank(box, 0)["attempts"][0]["reason"] == "timeout" else 0)
    told = "\n".join(step["text"] for step in other["steps"])
    assert "had failed in it" not in told, "it failed nothing"


def test_a_limit_on_time_is_told_while_the_task_runs(box: Box) -> None:
    started, _ = start_gated(box, ["wait"], "--ranks", "1", "--task-timeout", "500s")
    wait_until(lambda: waiting(box) == [0])
    story = task(box, "t0")
    assert steps(story) == ["planned", "claimed", "started"]
    assert story["state"] == "running"
    assert story["next"] == "its call is ended if it takes longer than 500 s"
    (box / "gate").touch()
    started.wait(0)


def test_what_a_drain_cuts_off_is_given_back(box: Box) -> None:
    started, _ = start_gated(box, ["wait"] * 2, "--ranks", "1", "--grace", "0s")
    wait_until(lambda: len(waiting(box)) == 1)
    in_hand = f"t{waiting(box)[0]}"
    box.run("drain", "S")
    started.wait(4)
    story = task(box, in_hand)
    assert story["state"] == "waiting"
    assert text_of(story, "ended") == (
        "rank-0000.a00 was killed: it had been told to stop; the task was given back"
    )
    assert story["now"] == "nobody has claimed it: it is the next of what rank-0000.a00 left"
    assert "nobody is at work; `gpuspool resume " in story["next"]
    assert rank(box, 0)["state"] == "stopped"


def test_a_task_that_failed_once_is_held_back_until_its_place_completes_another(box: Box) -> None:
    payloads = [{"payload": "bad", "cost": 9}, {"payload": "wait", "cost": 1}]
    started, _ = start_gated(box, payloads, "--ranks", "1")
    wait_until(lambda: waiting(box) == [1])
    story = task(box, "t0")
    assert (story["state"], steps(story)) == ("held back", ["planned", "claimed", "held"])
    assert story["now"].startswith("it failed in 1 attempt, which may be the place's fault")
    assert story["next"].startswith("it is tried elsewhere, or has failed, once ")
    (box / "gate").touch()
    started.wait(3)
    assert task(box, "t0")["state"] == "failed"


def test_a_task_on_another_host_is_not_dead_before_its_lease_is_over(box: Box) -> None:
    command = ["run", f"{JOBS}/gates.py:gated", "--tasks", box.tasks(["wait"]), "--spool", "S"]
    command += ["--arg", f"gate={box / 'gate'}", "--ranks", "1", "--lease", "2s"]
    box.start(*command, program=another_host())
    wait_until(lambda: waiting(box) == [0])
    live = wait_until(lambda: (one := task(box, "t0"))["state"] == "running" and one)
    assert "(cpu on other)" in text_of(live, "claimed")
    box.kill_all()
    silent = wait_until(lambda: "not proved dead" in (one := task(box, "t0"))["now"] and one)
    assert "it was heard last " in silent["now"]
    assert "its lease of 2 s" in silent["next"]
    of_rank = rank(box, 0)
    assert "is not proved dead" in of_rank["now"]


def test_a_task_that_two_attempts_completed_is_told_to_have_run_twice(box: Box) -> None:
    """As where a host that had been cut off finishes what others have done meanwhile."""
    run(box, "plain.py:double", [1, 2, 3, 4], "--ranks", "2")
    journals = sorted((box / "S" / "journal").iterdir(), key=lambda path: -path.stat().st_size)
    lines = journals[0].read_bytes().splitlines(keepends=True)
    with journals[1].open("ab") as file:
        file.write(lines[1])
    index = json.loads(lines[1])["task"]
    story = task(box, f"#{index}")
    assert steps(story).count("complete") == 2
    twice = [step for step in story["steps"] if "it ran twice" in step["text"]]
    assert [step["attempt"] for step in twice] == ["rank-0001.a00"], "the first one counts"
    assert story["now"] == "complete, by rank-0000.a00; it ran 2 times, and the first output stayed"
    (result,) = [one for one in box.results("S") if one["index"] == index]
    assert result["attempt"] == "rank-0000.a00"


def test_a_task_that_is_not_done_is_called_again(box: Box) -> None:
    source = (
        "import gpuspool\n"
        "calls = []\n"
        "def Job(task, ctx):\n"
        "    calls.append(task.key)\n"
        "    if calls.count(task.key) <= task.payload: raise gpuspool.NotDone\n"
        "    return 1\n"
    )
    box.write("job.py", source)
    box.run("run", "job.py:Job", "--tasks", box.tasks([2, 0]), "--spool", "S", "--ranks", "1")
    story = task(box, "t0")
    assert steps(story).count("deferred") == 2
    assert "it is not done, or has to run alone, and is called again" in text_of(story, "deferred")
    assert story["state"] == "complete"


def test_a_job_that_asks_for_a_fresh_process_gets_one(box: Box) -> None:
    source = (
        "import gpuspool, os\n"
        "def Job(task, ctx):\n"
        "    if task.payload and ctx.attempt.endswith('a00'): raise gpuspool.Restart('it leaks')\n"
        "    return 1\n"
    )
    box.write("job.py", source)
    tasks = [{"payload": 0, "cost": 9}, {"payload": 1, "cost": 1}]
    box.run("run", "job.py:Job", "--tasks", box.tasks(tasks), "--spool", "S", "--ranks", "1")
    story = task(box, "t1")
    assert "restart" in steps(story)
    assert "ended: its job asked for a fresh process: it leaks" in text_of(story, "ended")
    assert "the task was given back" in text_of(story, "ended")


def test_a_call_that_is_split_is_told_of_its_tasks(box: Box) -> None:
    source = (
        "class Job:\n"
        "    batch_size = 4\n"
        "    def __call__(self, tasks, ctx):\n"
        "        if any(task.payload == 'bad' for task in tasks): raise ValueError('bad batch')\n"
        "        return [1] * len(tasks)\n"
    )
    box.write("job.py", source)
    payloads = ["bad", *["good"] * 7]
    box.run(
        "run", "job.py:Job", "--tasks", box.tasks(payloads), "--spool", "S", "--ranks", "1", code=3
    )
    assert "raised on rank-0000.a00 (ValueError at job.py:4: bad batch)" in text_of(
        task(box, "t0"), "split"
    )


def test_a_task_that_was_added_and_one_that_is_redone(box: Box) -> None:
    for name in "ab":
        box.write(f"in/{name}.txt", name)
    job = f"{JOBS}/plain.py:write"
    box.run("run", job, "in/*", "--spool", "S", "--ranks", "1", "--key-root", "in")
    box.write("in/c.txt", "c")
    box.run("add", "S", "in/c.txt")
    added = task(box, "c.txt")
    assert (added["state"], steps(added)) == ("waiting", ["added"])
    assert added["now"] == "nobody has claimed it: it is the next of added-01"
    assert added["next"].startswith("nobody is at work; ")
    box.run("redo", "S", "a.txt")
    redone = task(box, "a.txt")
    assert (redone["state"], redone["round"]) == ("complete", 1)
    assert steps(redone) == [
        *("planned", "claimed", "complete"),
        *("redone", "claimed", "complete"),
    ]
    assert ", wrote a.txt.txt" in text_of(redone, "complete")
    assert redone["now"].endswith("; nobody runs it again")


def test_a_task_that_no_line_describes_any_more_has_failed(box: Box) -> None:
    half_done(box)
    path = box / "S" / "manifests" / "rank-0000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"key":"t39"', b'"key":"x39"'))
    story = task(box, "#39")
    assert story["state"] == "failed"
    assert story["now"] == "failed: no readable line of a manifest describes it any more"
    assert "gpuspool verify" in story["next"]
    assert story["key"] is None


def test_the_state_is_that_of_the_other_verbs(box: Box) -> None:
    """Of each task of a run in the middle, whatever came of it."""
    half_done(box, ranks=2)
    for result in box.results("S"):
        told = task(box, f"#{result['index']}")
        assert told["key"] == result["key"]
        expected = {"complete": {"complete"}, "missing": {"claimed", "waiting"}}
        assert told["state"] in expected[result["state"]]
    claimed = [task(box, f"#{index}")["state"] == "claimed" for index in range(40)]
    assert sum(claimed) >= 2


# A rank.


def test_a_rank_tells_what_it_is_at_and_what_its_list_has_left(box: Box) -> None:
    started, _ = start_gated(box, ["wait"] * 3, "--ranks", "1", "--lease", "12s")
    wait_until(lambda: len(waiting(box)) == 1)
    story = wait_until(lambda: "it runs t" in (one := rank(box, 0))["now"] and one)
    assert story["state"] == "running"
    assert steps(story) == ["started"]
    assert "by the parent of epoch 0 (`run`, pid " in story["steps"][0]["text"]
    assert story["next"] == "2 tasks of its own list are still unclaimed"
    of_attempt = gpuspool.explain(box / "S", attempt="rank-0000.a00")
    assert of_attempt["attempts"] == story["attempts"]
    (box / "gate").touch()
    started.wait(0)


def test_a_rank_that_has_nothing_to_do_says_for_what_it_waits(box: Box) -> None:
    started, _ = start_gated(box, ["wait", "a", "b"], "--ranks", "2", "--lease", "12s")
    wait_until(lambda: len(waiting(box)) == 1)
    idle = wait_until(
        lambda: next((one for one in (rank(box, 0), rank(box, 1)) if one["state"] == "idle"), None)
    )
    assert "it has nothing to do, and waits for what others have in hand" in idle["now"]
    (box / "gate").touch()
    started.wait(0)


def test_a_rank_whose_job_does_not_load(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): return 1\nraise RuntimeError('no weights')\n")
    box.run("run", "job.py:Job", "--tasks", box.tasks([1]), "--spool", "S", "--ranks", "1", code=4)
    story = rank(box, 0)
    assert story["state"] == "failed"
    assert "its job could not be loaded: RuntimeError at job.py:2: no weights" in text_of(
        story, "ended"
    )


# What is asked, and how it is shown.


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A box with a finished run of three tasks on two ranks, as spool-double."""
    home = tmp_path_factory.mktemp("done") / "home"
    home.mkdir()
    box = Box(home)
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(3), "--ranks", "2")
    return box


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["t1"], "t1"),
        (["#1"], "t1"),
        (["1"], "t1"),
        (["spool-double", "t1"], "t1"),
        (["spool-double", "--task", "t1"], "t1"),
        (["--task", "t1"], "t1"),
        (["rank", "1"], "rank 1"),
        (["rank 1"], "rank 1"),
        (["rank-0001"], "rank 1"),
        (["--rank", "1"], "rank 1"),
        (["spool-double", "rank", "1"], "rank 1"),
        (["spool-double", "--rank", "1"], "rank 1"),
        (["rank-0001.a00"], "rank-0001.a00"),
        (["./spool-double", "rank-0001.a00"], "rank-0001.a00"),
    ],
)
def test_the_words_behind_the_verb(done: Box, words: list[str], name: str) -> None:
    told = done.run("explain", *words).out
    assert told.splitlines()[0] == f"{name}  complete"
    assert told.splitlines()[-1].startswith("  now ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a task, a rank or an attempt"),
        (["t1", "t2"], "t1"),
        (["t1", "t2", "t0"], "one task or rank at a time"),
        (["spool-double"], "spool-double is a spool. Name a task"),
        (["t1", "spool-double"], "SPOOL comes first: `gpuspool explain spool-double t1`"),
        (["t9"], "has no task 't9'"),
        (["rank1"], "has no task 'rank1'. Did you mean rank 1?"),
        (["Rank_0001"], "has no task 'Rank_0001'. Did you mean rank 1?"),
        (["rank9"], "has no task 'rank9'. `gpuspool results spool-double` lists the keys."),
        (["#3"], "has no task '#3'. Its tasks are #0 to #2."),
        (["rank", "7"], "has no rank 7. Its ranks: 0, 1."),
        (["rank-0001.a03"], "has no rank-0001.a03; of rank 1: rank-0001.a00."),
        (["--rank", "1", "--task", "t1"], "name one"),
    ],
)
def test_words_that_name_nothing_are_refused_with_what_there_is(
    done: Box, words: list[str], said: str
) -> None:
    refused = done.run("explain", *words, code=None)
    assert refused.out == ""
    assert said in refused.err
    assert refused.code == 2


def test_programs_get_one_object(done: Box) -> None:
    told = done.run("explain", "t1", "--json").record()
    assert told == json.loads(json.dumps(gpuspool.explain(done / "spool-double", key="t1")))
    assert told["schema_version"] == 1
    assert told["spool"] == str(done / "spool-double")
    assert (told["task"], told["key"], told["round"]) == (1, "t1", 0)
    for step in told["steps"]:
        assert set(step) == {"at", "what", "text", "attempt", "details"}
    one = done.run("explain", "rank", "0", "--json").record()
    assert one["attempts"][0]["attempt"] == "rank-0000.a00"


def test_python_names_one_thing(done: Box) -> None:
    spool = done / "spool-double"
    for given in ({}, {"key": "t1", "rank": 1}):
        with pytest.raises(UsageError, match="name one task, or one rank, or one attempt"):
            gpuspool.explain(spool, **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"named as rank-0003\.a01"):
        gpuspool.explain(spool, attempt="t1")


def test_a_word_that_is_a_rank_and_a_key_and_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert subject_of(["rank", "3"], None, None) == Subject(None, rank=3)
    assert subject_of(["rank-0003"], None, None) == Subject(None, rank=3)
    assert subject_of([], None, "rank-0003") == Subject(None, "rank-0003")
    (tmp_path / "rank").mkdir()
    (tmp_path / "rank" / "FORMAT").touch()
    assert subject_of(["rank", "3"], None, None) == Subject("rank", "3")
    assert subject_of(["rank", "rank", "3"], None, None) == Subject("rank", rank=3)


def test_reading_a_story_opens_few_files_and_writes_none(box: Box) -> None:
    """At most four a rank and three, of a run whose every rank has one attempt."""
    ranks = 8
    box.run(
        *("run", f"{JOBS}/plain.py:double", "--lines", box.lines(400), "--spool", "S"),
        *("--ranks", str(ranks)),
    )
    source = (
        "import sys, os, gpuspool\n"
        "gpuspool.explain('S', key='t0')\n"
        "opened, folders = [], set()\n"
        "def hook(event, args):\n"
        "    if event == 'open' and '/S/' in str(args[0]): opened.append(str(args[0]))\n"
        "    if event in ('os.mkdir', 'os.rename', 'os.link', 'os.remove'): print('WROTE', args)\n"
        "sys.addaudithook(hook)\n"
        "gpuspool.explain('S', key='t77')\n"
        "print(len(opened), sum('/claims/' in name for name in opened))\n"
        "opened.clear()\n"
        "gpuspool.explain('S', rank=3)\n"
        "print(len(opened), 0)\n"
    )
    for line in box.python(source).out.splitlines():
        opens, claims = map(int, line.split())
        assert 0 < opens <= 4 * ranks + 3
        assert claims <= 1
    assert len(names(box / "S" / "claims" / "rank-0000")) > 1


def test_steps_without_a_time_stay_where_they_were_told_and_long_stories_are_cut() -> None:
    def step(at: float | None, text: str) -> Step:
        return Step(at=at, what="x", text=text)

    found = in_order([step(5, "b"), step(None, "c"), step(3, "a"), step(9, "d")])
    assert [one.text for one in found] == ["a", "b", "c", "d"]
    now = time.time()
    story = Story(
        name="t\n1",
        state="complete",
        facts={},
        steps=[step(now, f"number {count}") for count in range(200)],
        now="so it is",
    )
    lines = story_text(story).splitlines()
    assert lines[0] == "t\\n1  complete"
    assert len(lines) == 1 + 20 + 1 + 30 + 1
    assert "… and 150 more steps; `--json` has them" in lines[21]
    stamp = lines[1].split()[0]
    assert len(stamp) == len("23:59:59") or len(lines[1].split()[1]) == len("23:59:59")


def test_a_time_of_another_day_is_told_with_its_date() -> None:
    steps_ = [Step(at=time.time() - 3 * 86400, what="x", text="then")]
    story = Story(name="t", state="s", facts={}, steps=steps_, now="now it is")
    day = time.strftime("%Y-%m-%d", time.localtime(steps_[0].at))
    assert story_text(story).splitlines()[1].split()[0] == day


def test_frames_of_threads_in_user_code_come_before_those_of_libraries() -> None:
    library = f"{os.path.dirname(os.__file__)}/threading.py"
    stacks = (
        "Thread 0x1 (most recent call first):\n"
        f'  File "{library}", line 1 in wait\n'
        '  File "/home/ada/load.py", line 7 in fetch\n\n'
        "Current thread 0x2 (most recent call first):\n"
        f'  File "{library}", line 3 in join\n'
        '  File "/home/ada/job.py", line 12 in solve\n'
        '  File "/opt/x/gpuspool/worker/results.py", line 90 in call_user_code\n'
    )
    error = Error(kind=ErrorKind.TIMEOUT, type="TaskTimeout", message="", traceback=stacks)
    assert frames_of(error) == ("job.py:12 in solve", "load.py:7 in fetch")
    alone = stacks.replace("/home/ada", os.path.dirname(os.__file__))
    error = Error(kind=ErrorKind.TIMEOUT, type="TaskTimeout", message="", traceback=alone)
    assert frames_of(error)[0] == "threading.py:3 in join"
    assert frames_of(Error(kind=ErrorKind.TIMEOUT, type="T", message="")) == ()


def test_a_message_of_a_users_cannot_forge_a_line(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): raise ValueError('x\\n  now complete\\x1b[2J')\n")
    box.run(
        "run",
        "job.py:Job",
        "--tasks",
        box.tasks([1, 2]),
        "--spool",
        "S",
        "--ranks",
        "1",
        "--keep-going",
        code=3,
    )
    told = story_text(tell(box / "S", "t0", None, None))
    assert "\x1b" not in told
    assert sum(line.startswith("  now ") for line in told.splitlines()) == 1
