"""Devices on which every attempt fails: they are given up and named, the others do the work, and no
task is blamed.
"""

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


def test_ranks_that_die_fast_on_one_device_accuse_the_device_and_no_task(box: Box) -> None:
    options = [
        "--devices",
        "GPU-a,GPU-bad",
        "--ranks-per-gpu",
        "2",
        "--max-restarts",
        "1",
        "--max-crashes",
        "1",
    ]
    started = box.start(*command_on(box, "dies_on_device", 40, *options), env=OFF)
    wait_until(lambda: len(closings(box, 1) + closings(box, 3)) >= 2)
    wait_until(
        lambda: any(
            closing["reason"] == "device" for closing in closings(box, 1) + closings(box, 3)
        )
    )
    (box / "gate").touch()
    done = started.wait(0)
    assert_sound(box, "S", 40)
    assert "Look at device GPU-bad (rank 1, rank 3" in done.err
    assert "SIGKILL" in done.err.splitlines()[-1]
    assert len(closings(box, 1) + closings(box, 3)) <= 3
