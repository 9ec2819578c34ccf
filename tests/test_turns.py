"""A device alone: out of memory is a task's fault only if no other rank ran on its device then.

The devices are made up, and so is their memory: it is too small for a large task while any other
call is under way.
"""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, Started, assert_sound, identities, kill, names, wait_until

JOB = """
import os, pathlib, time

OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})
busy = pathlib.Path("busy")
busy.mkdir(exist_ok=True)

def wait_for(condition):
    while not condition():
        time.sleep(0.001)

def others(ctx):
    return [name for name in os.listdir(busy) if name != ctx.attempt]

def f(task, ctx):
    mine = busy / ctx.attempt
    mine.touch()
    try:
        return do(task, ctx)
    finally:
        mine.unlink()

def do(task, ctx):
    if task.payload == "small":
        time.sleep(0.005)
        return
    tried = pathlib.Path(f"tried-{task.index}")
    if task.payload == "long":
        tried.touch()
        wait_for(pathlib.Path("gate").exists)
        return
    # A large task. The first time it comes together with somebody's call.
    if not tried.exists():
        wait_for(lambda: others(ctx))
        tried.touch()
        raise OutOfMemoryError("CUDA out of memory")
    pathlib.Path("alone").touch()
    if task.payload == "dies":
        os._exit(5)
    for _ in range(40):
        time.sleep(0.005)
        if others(ctx):
            raise OutOfMemoryError("CUDA out of memory")
"""


def tokens(box: Box) -> list[str]:
    """Two devices that no other test has: turns are between all processes of a host."""
    digest = hashlib.sha256(str(box.home).encode()).hexdigest()
    found = [f"GPU-{digest[:8]}-{number}" for number in range(2)]
    box.environment["CUDA_VISIBLE_DEVICES"] = ",".join(found)
    return found


def shared(box: Box) -> list[str]:
    """Two ranks on one device."""
    return ["--devices", tokens(box)[0], "--ranks-per-gpu", "2", "--spool", "S"]


def start(box: Box, payloads: list[str], *more: str) -> tuple[Started, list[Any]]:
    box.write("job.py", JOB)
    command = ["run", "job.py:f", "--tasks", box.tasks(payloads), *shared(box), *more]
    return box.start(*command), command


def lock_files(box: Box) -> list[Path]:
    digests = [hashlib.sha256(token.encode()).hexdigest()[:16] for token in tokens(box)]
    paths = [Path(f"/dev/shm/gpuspool-{os.getuid()}-{digest}") for digest in digests]
    return [path for path in paths if path.exists()]


@pytest.mark.parametrize("limits", [[], ["--task-timeout", "60"]])
def test_a_large_task_has_the_device_alone_before_it_fails(box: Box, limits: list[str]) -> None:
    """Two ranks share the device, and always one of them has small tasks to do."""
    started, _ = start(box, ["small"] * 20 + ["large"] + ["small"] * 200 + ["large"], *limits)
    started.wait(0)
    assert_sound(box, "S", 222)
    assert lock_files(box) == []


def test_a_task_that_does_not_fit_even_alone_fails(box: Box) -> None:
    box.write("job.py", JOB.replace("if others(ctx)", "if True"))
    tasks = box.tasks(["small"] * 20 + ["large"] + ["small"] * 50)
    box.run("run", "job.py:f", "--tasks", tasks, *shared(box), code=3)
    results = box.results("S")
    assert [result["index"] for result in results if result["state"] == "failed"] == [20]
    assert results[20]["error"]["kind"] == "gpu_oom"


def test_a_drain_does_not_wait_for_a_turn_and_the_task_has_no_verdict(box: Box) -> None:
    """The other rank is in a call that takes long."""
    started, command = start(box, ["long", "large"], "--grace", "30")
    wait_until(lambda: (box / "tried-0").exists() and (box / "tried-1").exists())
    in_call = wait_until(lambda: names(box / "busy") if len(names(box / "busy")) == 1 else [])
    started.signal(signal.SIGTERM)
    wait_until(lambda: len(names(box / "S" / "stopped")) == 1)
    assert names(box / "S" / "stopped") != [f"{in_call[0]}.json"]
    (box / "gate").touch()
    started.wait(75)
    assert [result["state"] for result in box.results("S")] == ["complete", "missing"]
    box.run(*command)
    assert_sound(box, "S", 2)


def test_who_dies_during_its_turn_keeps_nobody_waiting(box: Box) -> None:
    started, _ = start(box, ["small"] * 10 + ["dies"] + ["small"] * 100)
    started.wait(3)
    results = box.results("S")
    assert [result["index"] for result in results if result["state"] == "failed"] == [10]


def test_who_is_killed_while_it_waits_for_its_turn_keeps_nobody_waiting(box: Box) -> None:
    started, _ = start(box, ["long", "large", *["small"] * 30])
    wait_until(lambda: (box / "tried-0").exists() and (box / "tried-1").exists())
    in_call = wait_until(lambda: names(box / "busy") if len(names(box / "busy")) == 1 else [])
    [waiting] = [pid for name, pid in identities(box / "S").items() if name not in in_call]
    kill(waiting)
    (box / "gate").touch()
    started.wait(0)
    assert_sound(box, "S", 32)


def test_ranks_of_different_devices_do_not_wait_for_each_other(box: Box) -> None:
    box.write("job.py", JOB.replace("if others(ctx)", "if False"))
    command = ["run", "job.py:f", "--tasks", box.tasks(["long", "large"]), "--spool", "S"]
    started = box.start(*command, "--devices", ",".join(tokens(box)))
    wait_until(lambda: (box / "alone").exists())
    assert not (box / "gate").exists()
    (box / "gate").touch()
    started.wait(0)
    assert_sound(box, "S", 2)


def test_a_job_that_closes_all_descriptors_goes_on_without_turns(box: Box) -> None:
    box.write(
        "job.py",
        "import os\n"
        "def f(task, ctx):\n"
        "    for name in os.listdir('/proc/self/fd'):\n"
        "        try:\n"
        "            path = os.readlink(f'/proc/self/fd/{name}')\n"
        "        except OSError:\n"
        "            continue\n"
        "        if '/gpuspool-' in path and path.startswith('/dev/shm'):\n"
        "            os.close(int(name))\n"
        "    return 1\n",
    )
    box.run("run", "job.py:f", "--lines", box.lines(30), *shared(box))
    assert_sound(box, "S", 30)
    for path in lock_files(box):
        path.unlink()


def test_a_cpu_rank_has_no_turns(box: Box) -> None:
    box.write(
        "job.py",
        "import os\n"
        "def f(task, ctx):\n"
        "    paths = [f'/proc/self/fd/{name}' for name in os.listdir('/proc/self/fd')]\n"
        "    return [os.readlink(path) for path in paths if os.path.exists(path)]\n",
    )
    box.run("run", "job.py:f", "--lines", box.lines(1), "--spool", "S", "--ranks", "1")
    [result] = box.results("S")
    assert not [path for path in result["result"] if path.startswith("/dev/shm/gpuspool-")]
