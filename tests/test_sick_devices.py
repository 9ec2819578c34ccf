"""Devices on which every attempt fails: they are given up and named, the others do the work, and no
task is blamed.
"""

import signal

from helpers import JOBS, Box, assert_sound, names, record, wait_until

OFF = {"CUDA_VISIBLE_DEVICES": None, "GPUSPOOL_DEVICE_CHECK": "off"}  # tokens here are made up


def command_on(box: Box, job: str, tasks: int, *options: str) -> list[str]:
    command = [
        "run",
        f"{JOBS}/harsh.py:{job}",
        "--tasks",
        box.tasks(list(range(tasks))),
        "--spool",
        "S",
    ]
    return [*command, "--arg", "bad=GPU-bad", "--arg", f"gate={box / 'gate'}", *options]


def closings(box: Box, rank: int) -> list[dict[str, object]]:
    return [
        record(box / "S" / "failed" / name)
        for name in names(box / "S" / "failed")
        if f"rank-000{rank}" in name
    ]


def test_a_device_that_never_starts_is_given_up_and_named(box: Box) -> None:
    options = ["--devices", "GPU-a,GPU-bad", "--max-restarts", "1"]
    started = box.start(*command_on(box, "NeedsDevice", 20, *options), env=OFF)
    wait_until(lambda: len(closings(box, 1)) == 2)
    (box / "gate").touch()
    done = started.wait(0)
    assert_sound(box, "S", 20)
    assert "Look at device GPU-bad (rank 1, host" in done.err
    assert "RuntimeError: no such device" in done.err.splitlines()[-1]
    assert record(box / "S" / "summary.json")["sick_devices"] == {"GPU-bad": [1]}
    assert len(closings(box, 1)) == 2, "started once more, and then given up"


def test_a_run_on_good_devices_names_none(box: Box) -> None:
    (box / "gate").touch()
    done = box.run(*command_on(box, "NeedsDevice", 5, "--devices", "GPU-a,GPU-b"), env=OFF)
    assert "Look at device" not in done.err
    assert record(box / "S" / "summary.json")["sick_devices"] == {}


def test_ranks_that_are_killed_on_one_device_accuse_the_device_and_no_task(box: Box) -> None:
    """A process that is killed there says nothing; that others complete its tasks does."""
    options = ["--devices", "GPU-a,GPU-bad", "--ranks-per-gpu", "2", "--max-restarts", "0"]
    started = box.start(*command_on(box, "dies_on_device", 40, *options), env=OFF)
    wait_until(lambda: closings(box, 1) and closings(box, 3))
    (box / "gate").touch()
    done = started.wait(0)
    assert_sound(box, "S", 40)
    assert "Look at device GPU-bad (rank 1, rank 3" in done.err
    assert "SIGKILL" in done.err.splitlines()[-1]
    assert record(box / "S" / "summary.json")["sick_devices"] == {"GPU-bad": [1, 3]}
    ends = closings(box, 1) + closings(box, 3)
    assert {end["exit_code"] for end in ends} == {-9}
    assert len(ends) <= 4, "a fresh process each at most, until others completed the tasks"


def test_a_device_on_which_every_call_raises_fails_no_task(box: Box) -> None:
    """It takes tasks faster than the good one completes them."""
    options = ["--devices", "GPU-a,GPU-bad"]
    done = box.run(*command_on(box, "raises_on_device", 60, *options), env=OFF)
    assert_sound(box, "S", 60)
    assert "Look at device GPU-bad (rank 1, host" in done.err
    assert record(box / "S" / "summary.json")["sick_devices"] == {"GPU-bad": [1]}


def test_inputs_that_end_their_worker_cost_no_device(box: Box) -> None:
    """The longest come first, and they are the bad ones: for a while all that ends is a crash."""
    bad, count = 8, 100
    tasks = [{"payload": i < bad, "cost": count - i} for i in range(count)]
    command = ["run", f"{JOBS}/harsh.py:ends_its_worker", "--tasks", box.tasks(tasks)]
    command += ["--devices", "GPU-a,GPU-b,GPU-c,GPU-d", "--spool", "S"]
    done = box.run(*command, env=OFF, code=3)
    assert "92 of 100 tasks complete, 8 failed" in done.err
    assert "Look at device" not in done.err
    states = [result["state"] for result in box.results("S")]
    assert states == ["failed"] * bad + ["complete"] * (count - bad)
    for result in box.results("S")[:bad]:
        assert result["error"]["exit_code"] == 5
        assert len(result["error"]["attempts"]) >= 2
    assert record(box / "S" / "summary.json")["sick_devices"] == {}
    assert box.problems("S") == []


def test_a_sick_device_and_bad_inputs_in_front_are_no_broken_job(box: Box) -> None:
    """The sick device fails task after task, and the bad ones end the other's processes."""
    box.write(
        "job.py",
        "import os\n"
        "def Job(task, ctx):\n"
        "    if os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-bad':\n"
        "        raise RuntimeError('an illegal memory access was encountered')\n"
        "    if task.payload < 10:\n"
        "        os._exit(7)\n",
    )
    tasks = box.tasks([{"payload": number, "cost": 40 - number} for number in range(40)])
    command = ["run", "job.py:Job", "--tasks", tasks, "--spool", "S"]
    done = box.run(*command, "--devices", "GPU-a,GPU-bad", env=OFF, code=3)
    assert "30 of 40 tasks complete, 10 failed" in done.err
    failed = [result["index"] for result in box.results("S") if result["state"] == "failed"]
    assert failed == list(range(10))


def test_a_device_on_which_nothing_was_done_before_a_stop_is_not_named(box: Box) -> None:
    """Both of its ranks were stopped before their first task was complete, by nobody's fault."""
    box.write(
        "job.py",
        "import os, time\n"
        "from pathlib import Path\n"
        "def Job(task, ctx):\n"
        "    if ctx.rank % 2:\n"
        "        Path(f'waits-{ctx.rank}').touch()\n"
        "        while not ctx.is_draining():\n"
        "            time.sleep(0.01)\n"
        "        raise InterruptedError\n"
        "    time.sleep(0.01)\n",
    )
    command = ["run", "job.py:Job", "--lines", box.lines(4000), "--spool", "S"]
    command += ["--devices", "GPU-a,GPU-b", "--ranks-per-gpu", "2"]
    started = box.start(*command, env=OFF)
    wait_until(lambda: (box / "waits-1").exists() and (box / "waits-3").exists())
    wait_until(lambda: box.status("S")["tasks"]["complete"] > 0)
    started.signal(signal.SIGTERM)
    done = started.wait(75)
    assert "Look at device" not in done.err
    assert record(box / "S" / "summary.json")["sick_devices"] == {}


def test_a_device_whose_processes_a_stranger_stops_is_named_with_that(box: Box) -> None:
    """A tool of the site that ends whoever uses a card, say."""
    box.write(
        "job.py",
        "import os, signal, time\n"
        "def Job(task, ctx):\n"
        "    if os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-bad':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        while not ctx.is_draining():\n"
        "            time.sleep(0.01)\n"
        "        raise InterruptedError\n"
        "    time.sleep(0.1)\n",
    )
    command = ["run", "job.py:Job", "--lines", box.lines(60), "--spool", "S"]
    command += ["--devices", "GPU-a,GPU-bad", "--max-restarts", "1"]
    done = box.run(*command, env=OFF)
    assert_sound(box, "S", 60)
    assert "Look at device GPU-bad" in done.err
    assert "it was told to stop by a signal of somebody else" in done.err


def test_what_is_told_of_a_device_is_its_failure_and_not_the_stop_that_came_after(box: Box) -> None:
    box.write(
        "job.py",
        "import os, time\n"
        "from pathlib import Path\n"
        "class Job:\n"
        "    def __init__(self, ctx):\n"
        "        self.is_bad = os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-bad'\n"
        "        if self.is_bad and len(list(Path().glob('tried-*'))) < 2:\n"
        "            Path(f'tried-{os.getpid()}').touch()\n"
        "            raise RuntimeError('no such device')\n"
        "    def __call__(self, task, ctx):\n"
        "        while self.is_bad and not ctx.is_draining():\n"
        "            Path('waits').touch()\n"
        "            time.sleep(0.01)\n"
        "        if self.is_bad: raise InterruptedError\n"
        "        time.sleep(0.01)\n",
    )
    command = ["run", "job.py:Job", "--lines", box.lines(9000), "--spool", "S"]
    started = box.start(*command, "--devices", "GPU-a,GPU-bad", "--max-restarts", "5", env=OFF)
    wait_until((box / "waits").exists)
    wait_until(lambda: box.status("S")["tasks"]["complete"] > 0)
    started.signal(signal.SIGTERM)
    done = started.wait(75)
    assert "somebody else" not in done.err
    assert "Look at device GPU-bad" in done.err
    assert "RuntimeError: no such device" in done.err
