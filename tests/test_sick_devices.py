"""Devices on which every attempt fails: they are given up and named, the others do the work, and no
task is blamed.
"""

import pytest
from helpers import JOBS, Box, assert_sound, names, record, wait_until

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.decide import RankPast, sick_devices
from gpuspool.spool.records import Closing, Error, TaskFailure
from gpuspool.spool.states import AttemptState, ErrorKind, Reason

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


def end(
    reason: str = "crash", *, at: float = 0.0, suspects: int = 0, lost: bool = False
) -> Closing:
    tasks = [TaskFailure(task=0, error=Error(kind=ErrorKind.LOST, type="", message=""))] * lost
    state = AttemptState.STOPPED if reason == "drained" else AttemptState.FAILED
    return Closing(
        attempt="rank-0000.a00",
        state=state,
        reason=Reason(reason),
        by="",
        at=at,
        suspects=suspects,
        failures=tasks,
    )


def rank(number: int, device: str, *ends: Closing, finished: int = 0) -> RankPast:
    return RankPast(Slot(number, device), ends, (finished,) * len(ends), 0.0, finished)


GOOD = rank(9, "good", end("drained"), finished=5)


@pytest.mark.parametrize(
    ("past", "sick"),
    [
        ([rank(0, "a", end("load"), end("load"), end("load"))], {"a"}),
        ([rank(0, "a", end("load"), end("load"))], set()),
        ([rank(0, "a", end("load"), end("load")), rank(1, "a", end("device"))], {"a"}),
        ([rank(0, "", end("load"), end("load"), end("load"))], set()),
        ([rank(0, "a", *[end(suspects=1)] * 3)], set()),
        ([rank(0, "a", *[end(suspects=1)] * 3), GOOD], {"a"}),
        ([rank(0, "a", *[end(suspects=1)] * 3, finished=1), GOOD], set()),
        ([rank(0, "a", end(), end(), end(suspects=1, lost=True)), GOOD], set()),
        ([rank(0, "a", *[end(at=1)] * 3), rank(1, "a", end("drained", at=3), finished=1)], set()),
        ([rank(0, "a", *[end(at=1)] * 3), rank(1, "a", end("drained", at=3))], {"a"}),
        ([rank(0, "a", *[end("lost")] * 9)], set()),
    ],
)
def test_a_device_is_sick_when_too_many_in_a_row_fail_for_nothing(
    past: list[RankPast], sick: set[str]
) -> None:
    assert sick_devices(past, max_restarts=2) == sick
