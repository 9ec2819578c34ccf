"""Fresh processes for a job that wants them (`recycle`, `Restart`), and its end (`close`)."""

import json
import signal
from typing import Any

import pytest
from helpers import Box, limit, names, story, wait_until

import gpuspool
from gpuspool.orchestrator.supervise.decide import (
    FAREWELL_S,
    Kill,
    OpenAttempt,
    Policy,
    Snapshot,
    decide,
)
from gpuspool.spool.states import Life

# Ends its process, by a way of its own, in the third call; the fresh one does the task.
TIRES = (
    "import gpuspool, os\n"
    "class Job:\n"
    "    def __init__(self, ctx): self.calls = 0\n"
    "    def __call__(self, task, ctx):\n"
    "        self.calls += 1\n"
    "        if self.calls == 3: raise gpuspool.Restart('the context is lost')\n"
    "        return os.getpid()\n"
)
# Says in a file when it ends. What it does then stands in the arguments.
CLOSES = (
    "import ctypes, gpuspool, os, signal, time\n"
    "class Job:\n"
    "    def __init__(self, ctx): self.done = 0\n"
    "    def __call__(self, task, ctx):\n"
    "        if task.payload == 'fresh' and self.done: raise gpuspool.Restart\n"
    "        if task.payload == 'kill': os.kill(os.getpid(), 9)\n"
    "        if task.payload == 'wait':\n"
    "            open('waits', 'w').close()\n"
    "            while not ctx.is_draining(): time.sleep(0.01)\n"
    "        self.done += 1\n"
    "        self.task = task\n"
    "    def close(self, ctx):\n"
    "        with open('closed', 'a') as file: file.write(f'{ctx.attempt} {self.done}\\n')\n"
    "        match ctx.args.get('end'):\n"
    "            case 'raise': raise ValueError('no end')\n"
    "            case 'hang': time.sleep(1000)\n"
    "            case 'slow': time.sleep(2)\n"
    "            case 'lock': ctypes.PyDLL(None).sleep(1000)\n"
    "            case 'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
    "            case 'abort': os.abort()\n"
    "            case 'output': ctx.output(self.task, '.txt')\n"
    "            case 'exit': raise SystemExit(3)\n"
    "            case 'fork': os.fork()\n"
)


def run(box: Box, values: list[object], *options: str, code: int | None = 0) -> Any:
    command = ["run", "job.py:Job", "--tasks", box.tasks(values), "--spool", "S", *options]
    return box.run(*command, code=code)


def records(box: Box) -> list[dict[str, Any]]:
    """The status records of all attempts that ended, in the order of their names."""
    found = []
    for state in ("complete", "stopped", "failed"):
        for path in (box / "S" / state).iterdir():
            found.append(json.loads(path.read_text()))
    return sorted(found, key=lambda record: record["attempt"])


def journals(box: Box) -> str:
    return "".join(path.read_text() for path in (box / "S" / "journal").iterdir())


def results(box: Box) -> list[Any]:
    return [result["result"] for result in box.results("S")]


def is_sound(box: Box) -> bool:
    return gpuspool.verify(box / "S").problems == []


@pytest.mark.parametrize("ranks", ["1", "3"])
def test_after_so_many_tasks_a_fresh_process_goes_on_and_nobody_is_blamed(
    box: Box, ranks: str
) -> None:
    box.write(
        "job.py",
        "import os\n"
        "class Job:\n"
        "    recycle = 3\n"
        "    def __call__(self, task, ctx): return os.getpid()\n",
    )
    done = run(box, list(range(20)), "--ranks", ranks, "--max-restarts", "0")
    pids = results(box)
    assert max(pids.count(pid) for pid in pids) <= 3
    recycled = [one for one in records(box) if one["reason"] == "recycled"]
    assert len(recycled) >= 20 // 3 - int(ranks)
    for record in recycled:
        assert (record["state"], record.get("error")) == ("stopped", None)
        manifest = box / "S" / "manifests" / f"{record['attempt']}.orphans.jsonl"
        assert len(manifest.read_text().splitlines()) == 1, "no more is claimed than will be run"
    assert is_sound(box)
    assert "failed" not in done.err


def test_a_leak_is_bounded(box: Box) -> None:
    box.write(
        "job.py",
        "import resource\nleaked = []\n"
        "def Job(task, ctx):\n"
        "    leaked.append(bytearray(b'x') * 20_000_000)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "Job.recycle = 4\n",
    )
    run(box, list(range(24)), "--ranks", "1")
    peaks = results(box)
    assert max(peaks) - min(peaks) < 4 * 20_000_000 + 20_000_000


BATCH = (
    "class Batched(Job):\n"
    "    batch_size = 2\n"
    "    def __call__(self, tasks, ctx):\n"
    "        pid = super().__call__(tasks, ctx)\n"
    "        return [pid for _ in tasks]\n"
    "Job = Batched\n"
)
IN_PLACE = (
    "class Batched(Job):\n"
    "    batch_size = 2\n"
    "    def __call__(self, tasks, ctx):\n"
    "        try: pid = super().__call__(tasks, ctx)\n"
    "        except gpuspool.Restart as wish: return [os.getpid(), wish]\n"
    "        return [pid for _ in tasks]\n"
    "Job = Batched\n"
)
LOAD = (
    "class Loads:\n"
    "    def __init__(self, ctx): self.done = 0\n"
    "    def load(self, task):\n"
    "        if self.done >= 2: raise gpuspool.Restart('the context is lost')\n"
    "    def __call__(self, task, ctx):\n"
    "        self.done += 1\n"
    "        return os.getpid()\n"
    "Job = Loads\n"
)


@pytest.mark.parametrize("more", ["", BATCH, IN_PLACE, LOAD], ids=["one", "batch", "place", "load"])
def test_a_job_gets_the_fresh_process_that_it_asks_for(box: Box, more: str) -> None:
    box.write("job.py", TIRES + more)
    run(box, list(range(12)), "--ranks", "1", "--max-restarts", "0")
    assert len(set(results(box))) > 1
    assert '"held"' not in journals(box)
    recycled = [one for one in records(box) if one["reason"] == "recycled"]
    assert recycled
    for record in recycled:
        assert record["state"] == "stopped"
        assert record["error"]["kind"] == "restart"
        assert record["error"]["message"] == "the context is lost"
    assert is_sound(box)


@pytest.mark.parametrize("more", ["", "Job.batch_size = 4\n"])
def test_a_job_that_always_asks_for_a_fresh_process_ends_as_broken(box: Box, more: str) -> None:
    box.write(
        "job.py", f"import gpuspool\ndef Job(task, ctx): raise gpuspool.Restart('lost')\n{more}"
    )
    done = run(box, list(range(60)), "--ranks", "2", code=4)
    assert "although this process is a fresh one: lost" in done.err
    assert len(records(box)) < 12


def test_a_task_that_always_asks_for_a_fresh_process_fails(box: Box) -> None:
    box.write(
        "job.py",
        "import gpuspool\n"
        "def Job(task, ctx):\n"
        "    if task.payload == 7: raise gpuspool.Restart('seven')\n",
    )
    run(box, list(range(30)), "--ranks", "2", "--max-restarts", "0", code=3)
    assert [one["state"] for one in box.results("S")].count("complete") == 29
    error = json.loads((box / "S" / "failed-tasks" / "t7.json").read_text())["error"]
    assert (error["kind"], error["type"]) == ("exception", "Restart")
    assert "asks for a fresh process" in error["message"]
    assert is_sound(box)


def test_a_constructor_that_asks_for_a_fresh_process_is_a_job_that_does_not_load(box: Box) -> None:
    box.write(
        "job.py",
        "import gpuspool\n"
        "class Job:\n"
        "    def __init__(self, ctx): raise gpuspool.Restart('no device')\n"
        "    def __call__(self, task, ctx): pass\n",
    )
    done = run(box, [1], "--ranks", "1", "--max-restarts", "1", code=4)
    assert "no device" in done.err


def test_a_long_task_may_have_a_fresh_process_for_each_step(box: Box) -> None:
    box.write(
        "job.py",
        "import gpuspool, os\n"
        "def Job(task, ctx):\n"
        "    (ctx.scratch(task) / str(os.getpid())).touch()\n"
        "    pids = len(list(ctx.scratch(task).iterdir()))\n"
        "    if pids < 4: raise gpuspool.NotDone\n"
        "    return pids\n"
        "Job.recycle = 1\n",
    )
    run(box, [1, 2], "--ranks", "1", "--max-restarts", "0")
    assert results(box) == [4, 4]


@pytest.mark.parametrize("options", [(), ("--keep-going",), ("--retries", "1")])
def test_a_bad_task_gets_its_verdict_in_spite_of_recycling(
    box: Box, options: tuple[str, ...]
) -> None:
    box.write(
        "job.py",
        "def Job(task, ctx):\n    if task.payload == 3: raise ValueError('bad')\nJob.recycle = 1\n",
    )
    run(box, list(range(8)), "--ranks", "2", *options, code=3)
    assert [one["state"] for one in box.results("S")].count("complete") == 7
    assert names(box / "S" / "failed-tasks") == ["t3.json"]


def run_without_orchestrator(box: Box, tasks: int) -> None:
    """Run a job that waits for the file "go"; from before that on its worker is alone."""
    values = box.tasks(list(range(tasks)))
    started = box.start("run", "job.py:Job", "--tasks", values, "--spool", "S", "--ranks", "1")
    wait_until(lambda: names(box / "S" / "journal"))
    started.process.kill()
    started.process.wait()
    box.write("go", "")
    wait_until(lambda: not box.processes())


def test_without_an_orchestrator_nobody_is_recycled(box: Box) -> None:
    box.write(
        "job.py",
        "import os, pathlib, time\n"
        "def Job(task, ctx):\n"
        "    while task.payload == 0 and not pathlib.Path('go').exists(): time.sleep(0.01)\n"
        "    return os.getpid()\n"
        "Job.recycle = 2\n",
    )
    run_without_orchestrator(box, 7)
    assert len(set(results(box))) == 1
    assert [record["reason"] for record in records(box)] == ["finished"]


def test_a_host_is_warmed_up_once_however_often_a_process_is_fresh(box: Box) -> None:
    box.write(
        "job.py",
        "class Job:\n"
        "    recycle = 1\n"
        "    @classmethod\n"
        "    def warmup(cls, ctx): open('warm', 'a').write('x')\n"
        "    def __init__(self, ctx): pass\n"
        "    def __call__(self, task, ctx): pass\n",
    )
    run(box, list(range(5)), "--ranks", "1")
    assert (box / "warm").read_text() == "x"


def closed(box: Box) -> list[str]:
    path = box / "closed"
    return path.read_text().splitlines() if path.exists() else []


def test_each_worker_that_ends_in_order_closes_its_job_once(box: Box) -> None:
    box.write("job.py", CLOSES + "Job.recycle = 2\n")
    run(box, [1, 2, 3, "fresh", 5, 6], "--ranks", "1")
    assert closed(box) == [
        f"{record['attempt']} {record['stats']['done']}" for record in records(box)
    ]
    assert all(record.get("close_error") is None for record in records(box))
    assert all("close" in record["stats"]["idle_s"] for record in records(box))


def test_a_drained_worker_closes_its_job_and_one_that_crashed_does_not(box: Box) -> None:
    box.write("job.py", CLOSES)
    values = box.tasks(["wait", 1, 2, 3])
    started = box.start("run", "job.py:Job", "--tasks", values, "--spool", "S", "--ranks", "1")
    wait_until((box / "waits").exists)
    started.signal(signal.SIGTERM)
    started.wait(code=75)
    assert closed(box) == ["rank-0000.a00 1"]
    box.write("job2.py", CLOSES)
    box.run(
        "run",
        "job2.py:Job",
        "--tasks",
        box.tasks(["kill"]),
        "--spool",
        "T",
        "--ranks",
        "1",
        code=None,
    )
    assert len(closed(box)) == 1


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("raise", "ValueError: no end"),
        ("hang", "CloseTimeout"),
        ("output", "OutputError"),
        ("exit", "SystemExit"),
    ],
)
def test_a_close_that_fails_is_told_and_concerns_no_task(box: Box, end: str, said: str) -> None:
    box.write("job.py", CLOSES)
    done = run(box, [1, 2, 3], "--ranks", "1", "--grace", "1s", "--arg", f"end={end}")
    assert said in done.err
    (record,) = records(box)
    assert (record["state"], record["reason"]) == ("complete", "finished")
    assert record["close_error"]["type"] == said.partition(":")[0]
    log = (box / "S" / "logs" / "rank-0000.a00.log").read_text()
    assert said in log or "job.py" in log
    assert "`close`" in log
    assert story(box / "S").count("close_failed") == 1
    assert is_sound(box)


@pytest.mark.parametrize("end", ["lock", "kill", "abort"])
def test_who_dies_in_close_takes_no_task_along(box: Box, end: str) -> None:
    """The task that asked for a fresh process is all that the dying attempt holds."""
    box.write("job.py", CLOSES)
    values = [1, "fresh", 3, 4]
    options = ("--ranks", "1", "--grace", "1s", "--max-crashes", "1", "--arg", f"end={end}")
    done = run(box, values, *options)
    for record in records(box):
        assert record["reason"] in ("crash", "finished"), record
        assert not record.get("suspects")
        assert not record.get("held")
        assert not record.get("lost")
    assert len(closed(box)) == len(records(box)) > 1
    assert "in the job's `close`; what it had not finished" in done.err
    assert " in hand)" not in done.err
    assert [one["state"] for one in box.results("S")] == ["complete"] * 4
    assert is_sound(box)


def test_a_fork_that_comes_back_from_close_is_no_worker(box: Box) -> None:
    box.write("job.py", CLOSES)
    run(box, [1], "--ranks", "1", "--arg", "end=fork")
    assert [record["reason"] for record in records(box)] == ["finished"]
    assert is_sound(box)


def test_a_job_that_never_loaded_is_not_closed(box: Box) -> None:
    box.write(
        "job.py",
        "class Job:\n"
        "    def __init__(self, ctx): raise ValueError\n"
        "    def __call__(self, task, ctx): pass\n"
        "    def close(self, ctx): open('closed', 'w').close()\n",
    )
    run(box, [1], "--ranks", "1", "--max-restarts", "0", code=4)
    assert not (box / "closed").exists()


def test_a_drain_does_not_wait_for_a_close_beyond_its_grace(box: Box) -> None:
    box.write("job.py", CLOSES)
    values = box.tasks(["wait", 1, 2, 3])
    command = ["run", "job.py:Job", "--tasks", values, "--spool", "S", "--ranks", "1"]
    started = box.start(*command, "--grace", limit(3), "--arg", "end=hang")
    wait_until((box / "waits").exists)
    started.signal(signal.SIGTERM)
    started.wait(code=75)
    (record,) = records(box)
    # On a busy machine the parent may be faster than the worker, which keeps little time to tell.
    assert record["reason"] in ("drained", "killed")
    if record["reason"] == "drained":
        assert record["close_error"]["type"] == "CloseTimeout"
    assert [one["state"] for one in box.results("S")].count("complete") == 1
    assert is_sound(box)


def test_limits_on_calls_do_not_hold_for_close(box: Box) -> None:
    box.write("job.py", CLOSES)
    options = ("--stall-timeout", limit(0.7), "--task-timeout", limit(0.7), "--arg", "end=slow")
    run(box, [1, 2], "--ranks", "1", *options)
    (record,) = records(box)
    assert (record["reason"], record.get("close_error")) == ("finished", None)
    assert record["stats"]["idle_s"]["close"] >= 2


def test_who_closes_its_job_at_the_end_of_a_run_has_the_grace_for_it() -> None:
    policy = Policy(max_restarts=3, grace_s=40.0)

    def kills(is_leaving: bool, now: float) -> list[str]:
        open_ = OpenAttempt(
            "rank-0000.a00", 0, Life.ALIVE, is_starting=False, is_leaving=is_leaving
        )
        snapshot = Snapshot(tasks_left=0, unclaimed=0, open=[open_], past=[], finished_at=100.0)
        return [
            action.attempt for action in decide(snapshot, policy, now) if isinstance(action, Kill)
        ]

    late = 100.0 + FAREWELL_S + 1
    assert kills(is_leaving=False, now=late) == ["rank-0000.a00"]
    assert kills(is_leaving=True, now=late) == []
    assert kills(is_leaving=True, now=late + 40.0) == ["rank-0000.a00"]


def test_the_next_process_of_a_rank_waits_until_the_last_one_is_gone(box: Box) -> None:
    """A thread of the job goes on for a while after the attempt is closed."""
    box.write(
        "job.py",
        "import os, pathlib, threading, time\n"
        "class Job:\n"
        "    recycle = 1\n"
        "    def __init__(self, ctx):\n"
        "        last = pathlib.Path('pid')\n"
        "        pid = last.read_text() if last.exists() else 'nobody'\n"
        "        self.is_alone = not os.path.exists(f'/proc/{pid}')\n"
        "        last.write_text(str(os.getpid()))\n"
        "    def __call__(self, task, ctx): return self.is_alone\n"
        "    def close(self, ctx): threading.Thread(target=time.sleep, args=(0.7,)).start()\n",
    )
    run(box, [1, 2, 3], "--ranks", "1")
    assert results(box) == [True] * 3


def test_ranks_that_share_a_device_are_recycled(box: Box) -> None:
    box.write("job.py", "import os\ndef Job(task, ctx): return os.getpid()\nJob.recycle = 2\n")
    command = ["run", "job.py:Job", "--tasks", box.tasks(list(range(12))), "--spool", "S"]
    made_up = {"CUDA_VISIBLE_DEVICES": None, "GPUSPOOL_DEVICE_CHECK": "off"}
    box.run(*command, "--devices", "GPU-0", "--ranks-per-gpu", "2", env=made_up)
    pids = results(box)
    assert max(pids.count(pid) for pid in pids) <= 2
    assert is_sound(box)


def test_a_process_that_is_of_no_use_ends_also_without_an_orchestrator(box: Box) -> None:
    box.write(
        "job.py",
        "import gpuspool, pathlib, time\n"
        "class Job:\n"
        "    def __init__(self, ctx): self.done = 0\n"
        "    def __call__(self, task, ctx):\n"
        "        while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
        "        if self.done == 2: raise gpuspool.Restart\n"
        "        self.done += 1\n",
    )
    run_without_orchestrator(box, 5)
    assert [record["reason"] for record in records(box)] == ["recycled"]
    assert [one["state"] for one in box.results("S")].count("complete") == 2
    box.run("resume", "S")
    assert [one["state"] for one in box.results("S")].count("complete") == 5


def test_a_close_that_fails_in_each_process_is_told_once(box: Box) -> None:
    box.write("job.py", CLOSES + "Job.recycle = 1\n")
    done = run(box, [1, 2, 3, 4], "--ranks", "1", "--arg", "end=raise")
    assert done.err.count("no end") == 1
    assert story(box / "S").count("close_failed") == 4
    assert len([record for record in records(box) if record["close_error"]]) == 4
